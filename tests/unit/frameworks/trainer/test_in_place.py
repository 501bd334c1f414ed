"""The callback alone prepares a Trainer's model, and everything comes out as with ``prepare``."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from toy_family import PRESETS, ToyDataset, toy_batch, toy_model
from transformers import Trainer, TrainingArguments, default_data_collator

from vlm_lora_plugin import VlmLoraCallback, load_adapter, prepare, training_arguments
from vlm_lora_plugin.checkpoint.completion import why_incomplete
from vlm_lora_plugin.checkpoint.files import ADAPTER_WEIGHTS, BASE_WEIGHTS, MANIFEST, TRAINER_WEIGHTS
from vlm_lora_plugin.checkpoint.manifest_file import read_manifest
from vlm_lora_plugin.errors import CheckpointError, ModelError, TrainingError
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.prepared.lineage import ancestor, start_from
from vlm_lora_plugin.prepared.model import find_prepared

WITH_PEFT, WITHOUT_PEFT = "lora+llm-lora", "lora"


def recipe(preset, **changes):
    lora = {"lora": {"r": 2, "lora_dropout": 0.2}} if preset in (WITH_PEFT, None) else {}
    return {
        "preset": preset,
        **lora,
        "optimizer": {"learning_rate": {"default": 1e-3, "lora": 1e-2}, "warmup_ratio": 0.0},
        "training": {
            "max_steps": 4,
            "save_steps": 2,
            "save_total_limit": None,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "dataloader_num_workers": 0,
        },
        **changes,
    }


def trainer(family, model, folder, document, dtype=torch.float32, **overrides):
    arguments = training_arguments(
        resolve_recipe(document, family), folder, dtype=dtype, disable_tqdm=True, **overrides
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=ToyDataset(),
        eval_dataset=ToyDataset(4),
        data_collator=default_data_collator,
        callbacks=[VlmLoraCallback(document)],
    )


def weights(run):
    return {name: tensor.detach().clone() for name, tensor in find_prepared(run.model).named_trainables().items()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    assert not [name for name in left if not torch.equal(left[name], right[name])]


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("dtype", "bf16"), [(torch.float32, False), (torch.bfloat16, True), (torch.bfloat16, False)])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_everything_is_as_with_prepare_bit_for_bit(toy, tmp_path, preset, dtype, bf16):
    document, overrides = recipe(preset), {"dtype": dtype, "bf16": bf16}
    plain = toy_model(dtype=dtype)
    alone = trainer(toy, plain, tmp_path / "alone", document, **overrides)
    start = weights(alone)
    alone.train()
    prepared = trainer(toy, prepare(toy_model(dtype=dtype), document), tmp_path / "prepared", document, **overrides)
    assert alone.model is plain
    assert find_prepared(plain).vlm_lora.manifest == prepared.model.vlm_lora.manifest
    learning = [name for name, parameter in plain.named_parameters() if parameter.requires_grad]
    assert [f"base_model.model.{name}" for name in learning] == [
        name for name, parameter in prepared.model.named_parameters() if parameter.requires_grad
    ]
    assert_equal(start, weights(prepared))
    prepared.train()
    assert losses(alone) == losses(prepared)
    assert_equal(weights(alone), weights(prepared))
    for name in ("adapter_config.json", ADAPTER_WEIGHTS, BASE_WEIGHTS, MANIFEST):
        left, right = (tmp_path / path / "checkpoint-4" / name for path in ("alone", "prepared"))
        assert left.read_bytes() == right.read_bytes(), name
    assert alone.evaluate()["eval_loss"] == prepared.evaluate()["eval_loss"]


@pytest.mark.parametrize("preset", [WITH_PEFT, WITHOUT_PEFT])
def test_the_trainers_own_resume_is_bit_for_bit(toy, tmp_path, preset):
    run = trainer(toy, toy_model(), tmp_path, recipe(preset))
    run.train()
    for checkpoint in (tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"):
        assert why_incomplete(checkpoint) is None
    again = trainer(toy, toy_model(), tmp_path, recipe(preset))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_equal(weights(again), weights(run))
    assert losses(again) == losses(run)


def test_a_resumed_run_knows_what_the_first_one_started_from(toy, tmp_path):
    """The Trainer loads the checkpoint itself here, as DeepSpeed does: no ``load_adapter`` brings the lineage."""
    prepare(toy_model(), recipe(WITH_PEFT)).save_pretrained(tmp_path / "parent")
    run = trainer(toy, toy_model(), tmp_path, recipe(WITH_PEFT))
    start_from(find_prepared(run.model), tmp_path / "parent")
    run.train()
    lineage = read_manifest(tmp_path / "checkpoint-4").lineage
    assert lineage == (ancestor(tmp_path / "parent"),)
    again = trainer(toy, toy_model(), tmp_path, recipe(WITH_PEFT))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert read_manifest(tmp_path / "checkpoint-4").lineage == lineage


def test_the_best_model_is_loaded_at_the_end(toy, tmp_path):
    run = trainer(
        toy,
        toy_model(),
        tmp_path,
        recipe(WITH_PEFT),
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the worst of a falling loss: the first checkpoint, not the last
    )
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-2")
    best = load_file(tmp_path / "checkpoint-2" / BASE_WEIGHTS)
    assert_equal({name: weights(run)[name] for name in best}, best)


def test_a_checkpoint_loads_with_load_adapter_and_its_lora_with_peft(toy, tmp_path):
    document = {**recipe(None), "components": {"language": "lora"}}
    run = trainer(toy, toy_model(fresh_lora=False), tmp_path, document)
    run.train()
    batch = toy_batch()
    with torch.no_grad():
        expected = run.model.eval()(**batch).logits
        assert torch.equal(
            load_adapter(toy_model(fresh_lora=False), tmp_path / "checkpoint-4")(**batch).logits, expected
        )
        by_peft = (
            PeftModel.from_pretrained(toy_model(fresh_lora=False), tmp_path / "checkpoint-4").eval()(**batch).logits
        )
    torch.testing.assert_close(by_peft, expected)


def test_a_checkpoint_holds_what_is_trained_and_not_the_base(toy, tmp_path):
    run = trainer(toy, toy_model(), tmp_path, recipe(WITH_PEFT))
    run.train()
    run.save_model(tmp_path / "final")
    learning = {name for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    assert load_file(tmp_path / "checkpoint-4" / TRAINER_WEIGHTS).keys() == learning
    assert not (tmp_path / "final" / TRAINER_WEIGHTS).exists(), "nothing but a Trainer's resuming needs it"
    assert (tmp_path / "final" / MANIFEST).is_file()


def test_what_the_callback_trained_can_be_resumed_by_a_prepared_model(toy, tmp_path):
    run = trainer(toy, toy_model(), tmp_path, recipe(WITH_PEFT))
    run.train()
    again = trainer(toy, prepare(toy_model(), recipe(WITH_PEFT)), tmp_path, recipe(WITH_PEFT))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_equal(weights(again), weights(run))
    assert not (tmp_path / "checkpoint-4" / TRAINER_WEIGHTS).exists(), "a leftover would be resumed from"


def test_what_a_prepared_model_trained_cannot_be_resumed_in_place_and_says_so(toy, tmp_path):
    trainer(toy, prepare(toy_model(), recipe(WITH_PEFT)), tmp_path, recipe(WITH_PEFT)).train()
    with pytest.raises(CheckpointError, match="saved by a model that prepare returned"):
        trainer(toy, toy_model(), tmp_path, recipe(WITH_PEFT)).train(resume_from_checkpoint=True)


def test_another_rank_is_refused_on_resume(toy, tmp_path):
    trainer(toy, toy_model(), tmp_path, recipe(WITH_PEFT)).train()
    with pytest.raises(CheckpointError, match=r"lora\.r: 2 / 4"):
        trainer(toy, toy_model(), tmp_path, recipe(WITH_PEFT, lora={"r": 4})).train(resume_from_checkpoint=True)


def test_a_second_trainer_on_the_same_model_prepares_nothing(toy, tmp_path):
    model = toy_model()
    first = trainer(toy, model, tmp_path, recipe(WITH_PEFT))
    names = [name for name, _ in model.named_parameters()]
    second = trainer(toy, model, tmp_path, recipe(WITH_PEFT))
    assert find_prepared(first.model) is find_prepared(second.model)
    assert [name for name, _ in model.named_parameters()] == names
    with pytest.raises(TrainingError, match=r"lora\.r: 2 / 4"):
        trainer(toy, model, tmp_path, recipe(WITH_PEFT, lora={"r": 4, "lora_dropout": 0.2}))


def test_the_wrapper_is_no_part_of_the_model(toy, tmp_path):
    model = trainer(toy, toy_model(), tmp_path, recipe(WITH_PEFT)).model
    assert not any(isinstance(module, PeftModel) for module in model.modules())
    twin = copy.deepcopy(model)
    assert find_prepared(twin) is not find_prepared(model)
    assert find_prepared(twin).get_base_model() is twin


def test_a_state_dict_that_lacks_something_trained_is_refused(toy, tmp_path):
    model = trainer(toy, toy_model(), tmp_path, recipe(WITHOUT_PEFT)).model
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "aligner.query"}
    with pytest.raises(CheckpointError, match=r"missing.*aligner\.query"):
        model.load_state_dict(state, strict=False)
    model.load_state_dict(model.state_dict())


def test_checkpointing_follows_the_recipe(toy, tmp_path):
    run = trainer(toy, toy_model(), tmp_path, recipe(WITHOUT_PEFT), gradient_checkpointing=True)
    with pytest.raises(TrainingError, match="gradient_checkpointing=True"):
        run.train()


def arguments(folder, **changes):
    return TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True, **changes)


def quantised():
    model = toy_model()
    model.hf_quantizer = object()
    return model


@pytest.mark.parametrize(
    ("model", "environment", "words"),
    [
        (toy_model, {"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        (quantised, {}, "quantised"),
        (lambda: torch.nn.DataParallel(toy_model()), {}, "DataParallel, already wrapped"),
        (lambda: prepare(toy_model(), WITH_PEFT).get_base_model(), {}, "already has PEFT layers"),
    ],
)
def test_where_it_cannot_be_right_it_says_to_call_prepare_first(toy, tmp_path, monkeypatch, model, environment, words):
    built, given = model(), arguments(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=rf"{words}(.|\n)*Call model = vlm_lora_plugin\.prepare"):
        VlmLoraCallback(WITH_PEFT).on_init_end(given, None, None, model=built)


def test_several_gpus_in_one_process_are_refused(toy, tmp_path):
    given = arguments(tmp_path)
    given._n_gpu = 2
    with pytest.raises(TrainingError, match=r"DataParallel copies it to 2 GPUs(.|\n)*Call model = "):
        VlmLoraCallback(WITH_PEFT).on_init_end(given, None, None, model=toy_model())


def test_model_init_is_refused_before_the_first_step(toy, tmp_path):
    run = Trainer(
        model_init=lambda: toy_model(),
        args=arguments(tmp_path, max_steps=1),
        train_dataset=ToyDataset(),
        data_collator=default_data_collator,
        callbacks=[VlmLoraCallback(WITHOUT_PEFT)],
    )
    with pytest.raises(TrainingError, match=r"Let model_init return vlm_lora_plugin\.prepare"):
        run.train()


def test_a_recipe_that_does_not_fit_stops_the_trainer_from_being_built(toy, tmp_path):
    with pytest.raises(ModelError, match="No adapter owns"):
        VlmLoraCallback("lora").on_init_end(arguments(tmp_path), None, None, model=_stranger())


def _stranger():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1))
