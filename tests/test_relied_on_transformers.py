"""What is relied on in transformers and accelerate without their promise. A failure here means that one has changed.

Look at what the test names before anything else; ``relied_on.py`` tells which of our files touch it.
"""

from __future__ import annotations

import inspect
import os
from types import SimpleNamespace

import pytest
import torch
from relied_on import relies_on
from torch import nn
from transformers import (
    DefaultFlowCallback,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers import initialization as init

STEPS, ACCUMULATION, ROWS = 2, 2, 4


def tiny_llama(cls=LlamaForCausalLM):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return cls(LlamaConfig(vocab_size=16, max_position_embeddings=32, num_key_value_heads=1, **sizes))


def rows(count=ROWS):
    ids = torch.arange(1, 7)
    return [{"input_ids": ids, "labels": torch.where(ids > 3, ids, -100)} for _ in range(count)]


class Watched(Trainer):
    """A Trainer that writes down in ``events`` what it calls, and with what."""

    def __init__(self, folder, **options):
        self.events = []
        settings = {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": ACCUMULATION,
            "save_steps": 1,
            "logging_steps": 1,
            "num_train_epochs": 1,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **options,
        }
        model = tiny_llama()
        super().__init__(model, TrainingArguments(str(folder), **settings), train_dataset=rows(), eval_dataset=rows(1))
        self.remove_callback(PrinterCallback)
        self.add_callback(OnSave(self.events))

    def note(self, name, *args, **kwargs):
        self.events.append((name, args, kwargs))

    def create_optimizer(self, *args, **kwargs):
        self.note("create_optimizer", *args, **kwargs)
        return super().create_optimizer(*args, **kwargs)

    def _run_epoch(self, *args, **kwargs):
        self.note("_run_epoch", *args, **kwargs)
        return super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, *args, **kwargs):
        found = super().get_batch_samples(*args, **kwargs)
        self.note("get_batch_samples", found)
        return found

    def _prepare_inputs(self, inputs):
        found = super()._prepare_inputs(inputs)
        self.note("_prepare_inputs", inputs, found)
        return found

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        self.note("_maybe_log_save_evaluate", *args, **kwargs)
        return super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs, *args, **kwargs):
        self.note("log", dict(logs))
        if "loss" in logs:
            logs["ours"] = 1.0
        return super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        self.note("_save_checkpoint", *args, **kwargs)
        super()._save_checkpoint(*args, **kwargs)
        folder = os.path.join(self._get_output_dir(trial=None), f"checkpoint-{self.state.global_step}")
        self.note("saved", {file: os.path.getsize(os.path.join(folder, file)) for file in sorted(os.listdir(folder))})

    def save_model(self, *args, **kwargs):
        self.note("save_model", *args, **kwargs)
        super().save_model(*args, **kwargs)

    def _save(self, *args, **kwargs):
        self.note("_save", *args, **kwargs)
        super()._save(*args, **kwargs)

    def named(self, name):
        return [(args, kwargs) for found, args, kwargs in self.events if found == name]


class OnSave(TrainerCallback):
    """Writes down when ``on_save`` comes, and what is in the checkpoint then."""

    def __init__(self, events):
        self.events = events

    def on_save(self, args, state, control, **kwargs):
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        sizes = {file: os.path.getsize(os.path.join(folder, file)) for file in sorted(os.listdir(folder))}
        self.events.append(("on_save", (sizes,), kwargs))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A Trainer after two steps, each with a checkpoint."""
    trainer = Watched(tmp_path_factory.mktemp("trained"))
    trainer.train()
    return trainer


def parameters_of(function):
    return list(inspect.signature(function).parameters)


@relies_on("Trainer._save_checkpoint")
def test_save_checkpoint_writes_everything_but_what_on_save_adds(trained):
    # The completion record, which lists every file, is written when it returns.
    names = ("_save_checkpoint", "save_model", "saved", "on_save")
    order = [name for name, _, _ in trained.events if name in names]
    assert order == list(names) * STEPS
    assert parameters_of(Trainer._save_checkpoint) == ["self", "model", "trial"]
    for (saved,), (noticed,) in zip(*([args for args, _ in trained.named(n)] for n in names[2:]), strict=True):
        assert saved == noticed
        assert {"optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"} <= saved.keys()


@relies_on("Trainer._save_checkpoint")
@pytest.mark.parametrize("limit", [None, 1])
def test_save_checkpoint_deletes_old_ones_by_the_limit_in_the_arguments(tmp_path, limit):
    # The limit is taken away meanwhile: the last complete checkpoint is needed until the new one is.
    trainer = Watched(tmp_path, save_total_limit=limit)
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        *(["checkpoint-1"] if limit is None else []),
        "checkpoint-2",
    ]


@relies_on("Trainer._get_output_dir")
def test_get_output_dir_is_the_arguments_folder_without_a_trial(trained):
    assert trained._get_output_dir(trial=None) == trained.args.output_dir


@relies_on("Trainer.save_model")
def test_save_model_is_told_the_folder_and_who_calls(trained):
    called = trained.named("save_model")
    assert [os.path.basename(args[0]) for args, _ in called] == ["checkpoint-1", "checkpoint-2"]
    assert all(kwargs == {"_internal_call": True} for _, kwargs in called)
    assert parameters_of(Trainer.save_model) == ["self", "output_dir", "_internal_call"]


@relies_on("Trainer._save")
def test_save_hands_tensors_to_the_models_save_pretrained(trained, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(trained.model, "save_pretrained", lambda folder, **kwargs: given.update(kwargs, folder=folder))
    tensors = {"some": torch.zeros(1)}
    Trainer._save(trained, str(tmp_path), state_dict=tensors)
    assert given["folder"] == str(tmp_path)
    assert given["state_dict"] is tensors
    assert (tmp_path / "training_args.bin").is_file()


@relies_on("Trainer._run_epoch")
def test_run_epoch_is_called_once_an_epoch(trained):
    assert len(trained.named("_run_epoch")) == 1


@relies_on("Trainer._run_epoch")
def test_an_epoch_that_only_asks_to_stop_ends_the_run(tmp_path):
    class Stopping(Watched):
        def _run_epoch(self, *args, **kwargs):
            self.note("_run_epoch")
            self.control.should_training_stop = True

    trainer = Stopping(tmp_path, num_train_epochs=3)
    assert trainer.train().global_step == 0
    assert len(trainer.named("_run_epoch")) == 1


@relies_on("Trainer._run_epoch")
def test_a_run_resumed_from_its_last_step_still_enters_an_epoch(tmp_path):
    # Which then takes a step beyond the last: why the epoch is wrapped.
    Watched(tmp_path, max_steps=1).train()
    again = Watched(tmp_path, max_steps=1)
    again.train(resume_from_checkpoint=True)
    assert len(again.named("_run_epoch")) == 1


@relies_on("Trainer.train")
def test_train_takes_the_checkpoint_first_and_true_for_the_last(trained, monkeypatch):
    assert parameters_of(Trainer.train)[:2] == ["self", "resume_from_checkpoint"]
    loaded = []

    def load(self, checkpoint, *args, **kwargs):
        loaded.append(os.path.basename(checkpoint))
        raise InterruptedError

    monkeypatch.setattr(Watched, "_load_from_checkpoint", load)
    with pytest.raises(InterruptedError):
        trained.train(True)
    assert loaded == ["checkpoint-2"]


@relies_on("get_last_checkpoint")
def test_the_last_checkpoint_has_the_highest_number_and_may_be_empty(tmp_path):
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

    assert PREFIX_CHECKPOINT_DIR == "checkpoint"
    for name in ("checkpoint-9", "checkpoint-10", "incomplete-checkpoint-11"):
        (tmp_path / name).mkdir()
    assert os.path.basename(get_last_checkpoint(str(tmp_path))) == "checkpoint-10"


@relies_on("rotate_checkpoints")
def test_rotate_checkpoints_deletes_the_oldest_and_keeps_the_best(tmp_path):
    from transformers.trainer_utils import rotate_checkpoints

    for number in (1, 2, 3, 4):
        (tmp_path / f"checkpoint-{number}").mkdir()
        os.utime(tmp_path / f"checkpoint-{number}", (number, number))
    best = str(tmp_path / "checkpoint-1")
    rotate_checkpoints(output_dir=str(tmp_path), save_total_limit=2, best_model_checkpoint=best, use_mtime=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-4"]


@relies_on("Trainer.create_optimizer")
def test_create_optimizer_leaves_an_optimizer_that_is_there(tmp_path):
    trainer = Watched(tmp_path)
    trainer.optimizer = torch.optim.SGD([{"params": [p], "lr": 0.5} for p in trainer.model.parameters()])
    mine = trainer.optimizer
    Trainer.create_optimizer(trainer, trainer.model)
    assert trainer.optimizer is mine
    assert all(group["lr"] == 0.5 for group in mine.param_groups)
    assert parameters_of(Trainer.create_optimizer)[:2] == ["self", "model"]


@relies_on("Trainer.create_optimizer")
def test_create_optimizer_is_called_before_the_first_step(trained):
    names = [name for name, _, _ in trained.events]
    assert names.index("create_optimizer") < names.index("_run_epoch")


@relies_on("Trainer.get_batch_samples")
def test_get_batch_samples_returns_the_batches_of_a_step_first(trained):
    called = [args[0] for args, _ in trained.named("get_batch_samples")]
    assert [len(found[0]) for found in called] == [ACCUMULATION] * STEPS
    assert all(batch["input_ids"].shape == (1, 6) for found in called for batch in found[0])


@relies_on("accepts_loss_kwargs")
def test_the_number_of_labels_of_the_whole_step_reaches_forward(tmp_path):
    seen = []

    class Counting(LlamaForCausalLM):
        accepts_loss_kwargs = True

        def forward(self, *args, num_items_in_batch=None, **kwargs):
            seen.append((self.training, num_items_in_batch))
            return super().forward(*args, **kwargs)

    trainer = Watched(tmp_path, eval_strategy="no", remove_unused_columns=False)
    trainer = Trainer(tiny_llama(Counting), trainer.args, train_dataset=rows())
    trainer.train()
    assert [int(count) for training, count in seen if training] == [3 * ACCUMULATION] * ROWS


@relies_on("Trainer._prepare_inputs")
def test_prepare_inputs_moves_tensors_and_changes_nothing_else(trained):
    given, found = trained.named("_prepare_inputs")[0][0]
    assert given.keys() == found.keys()
    for name, tensor in found.items():
        assert tensor.dtype == given[name].dtype
        assert tensor.device == trained.args.device
        assert torch.equal(tensor.cpu(), given[name].cpu())


@relies_on("Trainer._maybe_log_save_evaluate")
def test_each_step_logs_then_evaluates_then_saves(trained):
    # Once more at the end of the epoch, where nothing is due.
    names = [name for name, _, _ in trained.events if name in ("_maybe_log_save_evaluate", "log", "_save_checkpoint")]
    step = ["_maybe_log_save_evaluate", "log", "_save_checkpoint"]
    with_evaluation = ["_maybe_log_save_evaluate", "log", "log", "_save_checkpoint"]
    assert names == [*step, *with_evaluation, "_maybe_log_save_evaluate", "log"]


@relies_on("Trainer.log")
def test_only_a_training_step_is_logged_with_a_loss(trained):
    logged = [args[0] for args, _ in trained.named("log")]
    assert [next(k for k in ("loss", "eval_loss", "train_loss") if k in entry) for entry in logged] == [
        *["loss"] * STEPS,
        "eval_loss",
        "train_loss",
    ]


@relies_on("Trainer.log")
def test_what_is_put_into_the_logs_reaches_the_history(trained):
    assert [entry.get("ours") for entry in trained.state.log_history if "loss" in entry] == [1.0] * STEPS


@relies_on("DefaultFlowCallback")
def test_the_flow_is_a_callback_that_can_stand_first(trained):
    assert isinstance(trained.callback_handler.callbacks[0], DefaultFlowCallback)


@relies_on("PeftModel.load_adapter")
def test_the_trainer_resumes_a_peft_model_by_load_adapter():
    source = inspect.getsource(Trainer._load_from_checkpoint)
    assert "load_adapter(resume_from_checkpoint, active_adapter, is_trainable=True)" in source


@relies_on("GradientCheckpointingLayer._gradient_checkpointing_func")
@pytest.mark.parametrize("training", [True, False])
def test_a_checkpointing_layer_calls_the_function_set_on_it_in_training_alone(training):
    from transformers.modeling_layers import GradientCheckpointingLayer

    class Layer(GradientCheckpointingLayer):
        def forward(self, x, *, factor):
            return x * factor

    layer, called = Layer().train(training), []
    assert layer.gradient_checkpointing is False
    layer.gradient_checkpointing = True
    layer._gradient_checkpointing_func = lambda function, *args: called.append(args) or function(*args)
    x = torch.ones(2)
    assert torch.equal(layer(x, factor=3), 3 * x)
    assert called == ([(x,)] if training else [])


class TinyConfig(PreTrainedConfig):
    model_type = "relied_on_tiny"


class Tiny(PreTrainedModel):
    """A model that tells what of it was loaded when the library initialises the rest."""

    config_class = TinyConfig
    _no_split_modules = ["Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"old\.mask$"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config):
        super().__init__(config)
        self.kept, self.fresh = nn.Linear(2, 2), nn.Linear(2, 2)
        self.unloaded, self.initialised = set(), []
        self.post_init()

    def initialize_weights(self):
        super().initialize_weights()
        self.unloaded = {n for n, p in self.named_parameters() if not getattr(p, "_is_hf_initialized", False)}

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            self.initialised.append(module)
            init.constant_(module.bias, 7.0)


class Unable(Tiny):
    _supports_sdpa = _supports_flash_attn = False


@pytest.fixture
def stored(tmp_path):
    """A folder with a Tiny's weights without ``fresh``, and with a tensor that is to be ignored."""
    from safetensors.torch import save_file

    model = Tiny(TinyConfig())
    model.save_pretrained(tmp_path)
    tensors = {"kept.weight": torch.ones(2, 2), "kept.bias": torch.ones(2), "old.mask": torch.ones(1)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


@pytest.mark.filterwarnings("ignore")
@relies_on("parameter._is_hf_initialized", "PreTrainedModel.initialize_weights")
def test_loaded_parameters_are_marked_when_the_rest_is_initialised(stored):
    assert Tiny.from_pretrained(stored).unloaded <= {"fresh.weight", "fresh.bias"}
    seen = {}

    class Looking(Tiny):
        def initialize_weights(self):
            seen.update({n: getattr(p, "_is_hf_initialized", False) for n, p in self.named_parameters()})
            super().initialize_weights()

    Looking.from_pretrained(stored)
    assert seen == {"kept.weight": True, "kept.bias": True, "fresh.weight": False, "fresh.bias": False}


@relies_on("PreTrainedModel._init_weights", "initialization")
def test_init_weights_is_called_for_what_was_not_loaded_and_spares_what_was(stored):
    model = Tiny.from_pretrained(stored)
    assert model.fresh in model.initialised
    assert model.fresh.bias.tolist() == [7.0, 7.0]
    assert model.kept.bias.tolist() == [1.0, 1.0]


@relies_on("PreTrainedModel._keys_to_ignore_on_load_unexpected")
def test_a_tensor_to_be_ignored_is_not_reported(stored):
    _, report = Tiny.from_pretrained(stored, output_loading_info=True)
    assert set(report["missing_keys"]) == {"fresh.weight", "fresh.bias"}
    assert set(report["unexpected_keys"]) == set()


@relies_on("PreTrainedModel._no_split_modules", "PreTrainedModel._skip_keys_device_placement")
def test_a_models_lists_for_several_devices_are_read_by_the_library():
    model = Tiny(TinyConfig())
    assert set(model._no_split_modules) == {"Block"}
    assert set(model._skip_keys_device_placement) == {"past_key_values"}
    from transformers.integrations import accelerate

    source = inspect.getsource(accelerate)
    assert "._no_split_modules" in source
    assert "._skip_keys_device_placement" in source


@relies_on("config._attn_implementation", "PreTrainedModel._supports_sdpa")
def test_the_attention_is_sdpa_where_the_class_supports_it():
    assert Tiny(TinyConfig()).config._attn_implementation == "sdpa"
    assert Unable(TinyConfig()).config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        Unable(TinyConfig(attn_implementation="sdpa"))


@relies_on("PreTrainedModel._supports_flash_attn")
def test_flash_attention_is_refused_where_the_class_does_not_support_it():
    with pytest.raises(ValueError, match="Flash"):
        Unable(TinyConfig(attn_implementation="flash_attention_2"))


@relies_on("config._attn_implementation", "ALL_ATTENTION_FUNCTIONS")
def test_the_attention_of_a_config_is_looked_up_at_each_forward(monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.llama.modeling_llama import eager_attention_forward

    assert ALL_ATTENTION_FUNCTIONS.get_interface("eager", eager_attention_forward) is eager_attention_forward
    plain, called = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", eager_attention_forward), []
    assert plain is not eager_attention_forward
    model = tiny_llama()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", lambda *a, **k: called.append(1) or plain(*a, **k))
    for implementation in ("eager", "sdpa"):
        model.config._attn_implementation = implementation
        model(input_ids=torch.ones(1, 3, dtype=torch.long))
    assert called == [1]


@relies_on("eager_attention_forward")
def test_eager_attention_reads_the_number_of_groups_from_the_module():
    from transformers.models.llama.modeling_llama import eager_attention_forward

    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 3, 2), torch.randn(1, 2, 3, 2), torch.randn(1, 2, 3, 2)
    module = SimpleNamespace(num_key_value_groups=2, training=False)
    context, _ = eager_attention_forward(module, query, key, value, None, dropout=0.0, scaling=2**-0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(context, expected.transpose(1, 2))


@relies_on("CLIPEncoder")
def test_clips_encoder_takes_embeddings_and_returns_the_last_states():
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPEncoder

    config = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    config._attn_implementation = "eager"
    assert CLIPEncoder(config)(inputs_embeds=torch.zeros(1, 3, 8)).last_hidden_state.shape == (1, 3, 8)


@relies_on("GenerationMixin._expand_inputs_for_generation", "GenerationMixin.prepare_inputs_for_generation")
@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_generate_repeats_its_inputs_through_the_models_own_method(options):
    expanded, first = [], []

    class Repeating(LlamaForCausalLM):
        def _expand_inputs_for_generation(self, expand_size=1, input_ids=None, **kwargs):
            expanded.append((expand_size, len(input_ids), kwargs.pop("pixel_values")))
            ids, inputs = super()._expand_inputs_for_generation(expand_size=expand_size, input_ids=input_ids, **kwargs)
            assert torch.equal(ids, input_ids.repeat_interleave(expand_size, dim=0))
            return ids, {**inputs, "pixel_values": "ours"}

        def prepare_inputs_for_generation(self, *args, is_first_iteration=False, **kwargs):
            first.append((is_first_iteration, kwargs.pop("pixel_values")))
            return super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)

        def forward(self, *args, pixel_values=None, **kwargs):
            return super().forward(*args, **kwargs)

    model = tiny_llama(Repeating)
    ids = torch.tensor([[3, 4], [5, 6]])
    images = torch.zeros(3, 1)
    model.generate(ids, pixel_values=images, max_new_tokens=2, min_new_tokens=2, pad_token_id=0, **options)
    assert [(size, count) for size, count, _ in expanded] == [(2, 2)]
    assert expanded[0][2] is images
    assert first == [(True, "ours"), (False, "ours")]


@relies_on("TikTokenConverter")
def test_the_tiktoken_converter_asks_its_own_method_for_the_vocabulary():
    from transformers.convert_slow_tokenizer import TikTokenConverter, bytes_to_unicode

    class Ours(TikTokenConverter):
        def extract_vocab_merges_from_model(self, tiktoken_url):
            assert tiktoken_url == "the file"
            vocabulary = {shown: byte for byte, shown in bytes_to_unicode().items()}
            return {**vocabulary, "ab": 256}, [("a", "b")]

    tokenizer = Ours("the file", r"\p{N}|[^\p{N}]+", extra_special_tokens=["<end>", "<img>"]).converted()
    assert tokenizer.encode("ab<img>1").ids == [256, 258, ord("1")]
    assert tokenizer.decode([256, ord("1")]) == "ab1"


@relies_on("bytes_to_unicode")
def test_each_byte_is_shown_as_one_character_of_its_own():
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    shown = bytes_to_unicode()
    assert shown.keys() == set(range(256))
    assert len(set(shown.values())) == 256
    assert all(len(character) == 1 for character in shown.values())


@relies_on("extract_model_from_parallel", "OptimizedModule._orig_mod")
def test_accelerate_takes_off_what_compile_puts_around_a_model():
    from accelerate.utils import extract_model_from_parallel

    inner = nn.Linear(2, 2)
    compiled = torch.compile(inner)
    assert compiled._orig_mod is inner
    assert extract_model_from_parallel(compiled, keep_torch_compile=False) is inner
    assert extract_model_from_parallel(inner, keep_torch_compile=False) is inner


@relies_on("ModuleSpec._initializing")
def test_a_module_is_marked_while_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "relied_on_half.py").write_text("seen = __spec__._initializing")
    monkeypatch.syspath_prepend(str(tmp_path))
    import relied_on_half

    assert relied_on_half.seen is True
    assert not relied_on_half.__spec__._initializing


@relies_on("Module._modules", "Module._parameters", "Module._buffers")
def test_a_torch_module_keeps_its_parts_in_three_dictionaries_of_its_own():
    module = nn.BatchNorm1d(2)
    module.inner = nn.Linear(1, 1)
    own = vars(module)
    assert list(own["_modules"]) == ["inner"]
    assert set(own["_parameters"]) == {"weight", "bias"}
    assert set(own["_buffers"]) == {"running_mean", "running_var", "num_batches_tracked"}


@relies_on("PreTrainedModel._hf_peft_config_loaded")
def test_a_model_says_whether_peft_is_in_it_under_a_name_of_its_own():
    assert tiny_llama()._hf_peft_config_loaded is False


@relies_on("OpOverload._schema", "aten._to_copy")
def test_an_operation_knows_its_name_and_whether_it_returns_a_view():
    view, copy = torch.ops.aten.view.default._schema, torch.ops.aten._to_copy.default._schema
    assert (view.name, copy.name) == ("aten::view", "aten::_to_copy")
    assert view.returns[0].alias_info is not None
    assert copy.returns[0].alias_info is None
