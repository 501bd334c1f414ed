"""What is relied on in transformers' Trainer without its promise. A failure here means that one has changed.

Look at what the test names before anything else; ``relied_on.py`` tells which of our files touch it.
"""

from __future__ import annotations

import inspect
import os
from datetime import timedelta

import pytest
import torch
from relied_on import relies_on
from torch.distributed import HashStore, distributed_c10d
from transformers import (
    DefaultFlowCallback,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from vlm_lora_plugin.parallel.heartbeat import set_timeout

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


@relies_on("Trainer.get_batch_samples")
def test_without_a_number_of_items_a_step_is_the_mean_of_its_batches_means(tmp_path):
    """Also where the last step of an epoch has fewer batches than the others."""

    class Means(Trainer):
        def get_batch_samples(self, *args):
            return super().get_batch_samples(*args)[0], None

    uneven = [{**row, "labels": row["labels"].where(row["input_ids"] > 3 + n, -100)} for n, row in enumerate(rows(3))]
    arguments = Watched(tmp_path, eval_strategy="no", save_strategy="no", learning_rate=0.0).args
    trainer = Means(tiny_llama(), arguments, train_dataset=uneven)
    assert trainer.model_accepts_loss_kwargs
    trainer.train()
    with torch.no_grad():
        means = [float(trainer.model(row["input_ids"][None], labels=row["labels"][None]).loss) for row in uneven]
    first, second = (entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert len({round(mean, 4) for mean in means}) == 3
    assert 2 * first + second == pytest.approx(sum(means), rel=1e-5)


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


@pytest.fixture
def group():
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


@relies_on("distributed_c10d._set_pg_timeout")
def test_the_process_groups_timeout_can_be_set(group):
    set_timeout(7)
    backend = group._get_backend(torch.device("cpu"))
    assert backend.options._timeout == timedelta(seconds=7)
    assert hasattr(distributed_c10d, "set_timeout") or hasattr(distributed_c10d, "_set_pg_timeout")
