"""The unmodified Trainer trains what prepare decided, resumes bit for bit, and stops on anything else."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from toy_family import ToyDataset, toy_batch, toy_model
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments, default_data_collator

from vlm_lora_plugin import VlmLoraCallback, load_adapter, prepare, training_arguments
from vlm_lora_plugin.checkpoint.files import BASE_WEIGHTS, MANIFEST
from vlm_lora_plugin.errors import CheckpointError, TrainingError
from vlm_lora_plugin.frameworks.trainer.groups import parameter_groups
from vlm_lora_plugin.frameworks.trainer.hooks import HOOKS, install_hooks

WITH_PEFT = "lora+llm-lora"
WITHOUT_PEFT = "lora"
SETTINGS = {
    "optimizer": {"learning_rate": {"default": 1e-3, "lora": 1e-2}, "warmup_ratio": 0.0},
    "training": {
        "max_steps": 6,
        "save_steps": 3,
        "save_total_limit": None,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 0,
    },
}


def recipe(preset, **changes):
    lora = {"lora": {"r": 2, "lora_dropout": 0.2}} if preset == WITH_PEFT else {}
    return {"preset": preset, **SETTINGS, **lora, **changes}


def trainer(model, folder, *, callbacks=None, dataset=None, **overrides):
    return Trainer(
        model=model,
        args=training_arguments(model, folder, disable_tqdm=True, **overrides),
        train_dataset=dataset or ToyDataset(),
        eval_dataset=ToyDataset(4),
        data_collator=default_data_collator,
        callbacks=[VlmLoraCallback()] if callbacks is None else callbacks,
    )


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_trainables().items()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", [WITH_PEFT, WITHOUT_PEFT])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(toy, tmp_path, preset, dtype):
    whole = prepare(toy_model(dtype=dtype), recipe(preset))
    run = trainer(whole, tmp_path)
    run.train()
    start, end = weights(prepare(toy_model(dtype=dtype), recipe(preset))), weights(whole)
    assert all(not torch.equal(start[name], end[name]) for name in end), "every parameter must have moved"

    resumed = prepare(toy_model(dtype=dtype), recipe(preset))
    again = trainer(resumed, tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.state.global_step == 6
    assert_equal(weights(resumed), end)
    for left, right in zip(run.optimizer.state.values(), again.optimizer.state.values(), strict=True):
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_resume_finds_the_last_checkpoint(toy, tmp_path):
    model = prepare(toy_model(), recipe(WITHOUT_PEFT))
    trainer(model, tmp_path, max_steps=3).train()
    resumed = prepare(toy_model(), recipe(WITHOUT_PEFT))
    run = trainer(resumed, tmp_path, max_steps=3)
    run.train(resume_from_checkpoint=True)
    assert_equal(weights(resumed), weights(model))


def test_frozen_parameters_stay(toy, tmp_path):
    model = prepare(toy_model(), recipe(WITH_PEFT))
    before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    trainer(model, tmp_path).train()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


def test_a_checkpoint_and_save_model_carry_the_whole_trainable_set(toy, tmp_path):
    model = prepare(toy_model(), recipe(WITHOUT_PEFT))
    run = trainer(model, tmp_path)
    run.train()
    run.save_model(tmp_path / "final")
    for folder in (tmp_path / "checkpoint-6", tmp_path / "final"):
        assert_equal(load_file(folder / BASE_WEIGHTS), weights(model))
        assert (folder / MANIFEST).is_file()
        batch = toy_batch()
        with torch.no_grad():
            expected = model.eval()(**batch).logits
            assert torch.equal(load_adapter(toy_model(), folder)(**batch).logits, expected)


def test_the_best_model_is_loaded_at_the_end(toy, tmp_path):
    model = prepare(toy_model(), recipe(WITHOUT_PEFT, training={**SETTINGS["training"], "eval_steps": 3}))
    run = trainer(
        model,
        tmp_path,
        evaluate=True,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the worst of a falling loss: the first checkpoint, not the last
    )
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-3")
    assert_equal(weights(model), load_file(tmp_path / "checkpoint-3" / BASE_WEIGHTS))


def test_both_rates_reach_the_optimizer_and_the_resumed_one(toy, tmp_path):
    def rates(run):
        return {group["name"]: (group["initial_lr"], group["lr"]) for group in run.optimizer.param_groups}

    run = trainer(prepare(toy_model(), recipe(WITHOUT_PEFT)), tmp_path)
    run.train()
    assert {name: pair[0] for name, pair in rates(run).items()} == {"vision.lora": 1e-2, "aligner.full": 1e-3}
    again = trainer(prepare(toy_model(), recipe(WITHOUT_PEFT)), tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert rates(again) == rates(run)


def test_groups_are_by_component_means_and_decay_and_none_is_empty(toy):
    model = prepare(toy_model(), recipe(WITH_PEFT))
    groups = parameter_groups(model)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("language.lora", 1e-2, 0.1),
        ("vision.lora", 1e-2, 0.0),
        ("vision.lora", 1e-2, 0.1),
        ("aligner.full", 1e-3, 0.1),
        ("aligner.full", 1e-3, 0.0),
    ]
    assert sum(len(group["params"]) for group in groups) == len(model.vlm_lora.trainable.parameters)


def test_the_optimizer_has_the_recipes_betas(toy, tmp_path):
    model = prepare(toy_model(), recipe(WITHOUT_PEFT))
    plain = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    optimizer = Trainer(model=model, args=plain).create_optimizer()
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 1e-2}


def test_installing_the_hooks_twice_wraps_each_method_once():
    install_hooks()
    wrapped = [getattr(Trainer, hook.method) for hook in HOOKS]
    install_hooks()
    assert [getattr(Trainer, hook.method) for hook in HOOKS] == wrapped
    assert all(hook.why for hook in HOOKS)


def test_a_model_that_was_not_prepared_keeps_the_trainers_own_groups(toy, tmp_path):
    install_hooks()
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, weight_decay=0.3)
    groups = Trainer(model=toy_model(), args=arguments).create_optimizer().param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]


def test_accumulation_gives_the_loss_and_step_of_one_large_batch(toy, tmp_path):
    """The sum over supervised tokens is divided by their number in the whole step, not per micro-batch."""
    changes = {"training": {**SETTINGS["training"], "max_steps": 1}}
    ends, losses = [], []
    for batch, accumulation in ((4, 1), (1, 4)):
        model = prepare(toy_model(lora_dropout=0.0, attention_dropout=0.0), recipe(WITHOUT_PEFT, **changes))
        run = trainer(
            model,
            tmp_path / str(batch),
            dataset=ToyDataset(4),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            save_strategy="no",
        )
        assert run.model_accepts_loss_kwargs
        run.train()
        ends.append(weights(model))
        losses.append(run.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, end in ends[0].items():
        torch.testing.assert_close(ends[1][name], end, rtol=1e-3, atol=1e-5)


def test_the_trainer_evaluates_a_16_bit_model(toy, tmp_path):
    run = trainer(prepare(toy_model(dtype=torch.bfloat16), recipe(WITH_PEFT)), tmp_path)
    assert run.evaluate()["eval_loss"] > 0


def test_a_model_that_was_not_prepared_stops_the_run(toy, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(TrainingError, match=r"Call model = vlm_lora_plugin\.prepare"):
        Trainer(model=toy_model(), args=arguments, callbacks=[VlmLoraCallback()])


def test_another_recipe_in_the_callback_stops_the_run_and_shows_the_difference(toy, tmp_path):
    model = prepare(toy_model(), recipe(WITHOUT_PEFT))
    with pytest.raises(TrainingError, match="seed: 42 / 43"):
        trainer(model, tmp_path, callbacks=[VlmLoraCallback(recipe(WITHOUT_PEFT, seed=43))])


def test_the_same_recipe_in_the_callback_is_fine(toy, tmp_path):
    model = prepare(toy_model(), recipe(WITHOUT_PEFT))
    run = trainer(model, tmp_path, callbacks=[VlmLoraCallback(recipe(WITHOUT_PEFT))], max_steps=1)
    run.train()
    assert run.state.global_step == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: model.get_parameter("base_model.model.lm_head.weight").requires_grad_(True), "lm_head.weight"),
        (lambda model: model.named_trainables()["aligner.query"].requires_grad_(False), "frozen since.*aligner.query"),
        (lambda model: setattr(model.named_trainables()["aligner.query"], "data", torch.zeros(3, 16).half()), "fp32"),
    ],
)
def test_a_parameter_changed_behind_prepares_back_stops_the_run(toy, tmp_path, change, words):
    model = prepare(toy_model(), recipe(WITHOUT_PEFT))
    run = trainer(model, tmp_path)
    change(model)
    with pytest.raises(TrainingError, match=words):
        run.train()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (lambda model: list(model.named_trainables().values())[1:], "not in the optimizer"),
        (lambda model: [*model.parameters()], "not in the recipe: .*embed_tokens"),
        (lambda model: [*model.named_trainables().values(), torch.nn.Parameter(torch.zeros(5))], "shape \\(5,\\)"),
        (lambda model: [*model.named_trainables().values()], "another learning_rate"),
    ],
)
def test_an_optimizer_of_the_users_own_must_follow_the_recipe(toy, tmp_path, parameters, words):
    model = prepare(toy_model(), recipe(WITHOUT_PEFT))
    own = torch.optim.AdamW(parameters(model), lr=1e-3)
    run = Trainer(
        model=model,
        args=training_arguments(model, tmp_path, disable_tqdm=True),
        train_dataset=ToyDataset(),
        data_collator=default_data_collator,
        optimizers=(own, None),
        callbacks=[VlmLoraCallback],
    )
    with pytest.raises(TrainingError, match=words):
        run.train()


def test_an_optimizer_of_the_users_own_with_the_right_groups_is_fine(toy, tmp_path):
    model = prepare(toy_model(), recipe(WITHOUT_PEFT))
    run = Trainer(
        model=model,
        args=training_arguments(model, tmp_path, disable_tqdm=True, max_steps=1),
        train_dataset=ToyDataset(),
        data_collator=default_data_collator,
        optimizers=(torch.optim.AdamW(parameter_groups(model)), None),
        callbacks=[VlmLoraCallback],
    )
    run.train()
    assert run.state.global_step == 1


@pytest.mark.parametrize(
    ("argument", "value"), [("learning_rate", 0.5), ("weight_decay", 0.7), ("adam_beta2", 0.5), ("adam_epsilon", 1e-3)]
)
def test_an_argument_that_contradicts_the_recipe_stops_the_run(toy, tmp_path, argument, value):
    run = trainer(prepare(toy_model(), recipe(WITHOUT_PEFT)), tmp_path, **{argument: value})
    with pytest.raises(TrainingError, match=rf"TrainingArguments\.{argument} is {value}.*optimizer\.{argument}"):
        run.train()


def test_an_optimizer_that_cannot_have_groups_stops_the_run(toy, tmp_path):
    model = prepare(toy_model(), recipe(WITHOUT_PEFT))
    run = trainer(model, tmp_path)
    run.optimizer_cls_and_kwargs = (torch.optim.AdamW, {"params": []})
    with pytest.raises(TrainingError, match="groups"):
        run.train()


def test_checkpointing_against_the_recipe_stops_the_run(toy, tmp_path):
    run = trainer(prepare(toy_model(), recipe(WITHOUT_PEFT)), tmp_path, gradient_checkpointing=True)
    with pytest.raises(TrainingError, match="gradient_checkpointing=True"):
        run.train()


def test_checkpointing_that_agrees_with_the_recipe_runs(toy, tmp_path):
    document = recipe(WITHOUT_PEFT, gradient_checkpointing={"language": True})
    run = trainer(prepare(toy_model(), document), tmp_path, gradient_checkpointing=True, max_steps=1)
    run.train()
    assert run.state.global_step == 1


def test_a_loss_of_the_arguments_that_is_not_the_recipes_stops_the_run(toy, tmp_path):
    with pytest.raises(TrainingError, match=r"label_smoothing_factor is 0\.1, the recipe's loss has none"):
        trainer(prepare(toy_model(), recipe(WITHOUT_PEFT)), tmp_path, label_smoothing_factor=0.1)


class Unsupervised(ToyDataset):
    """Rows without a label."""

    def __getitem__(self, index):
        row = super().__getitem__(index)
        row["labels"][:] = -100
        return row


def test_a_loss_that_is_not_finite_stops_the_run(toy, tmp_path):
    run = trainer(prepare(toy_model(), recipe(WITHOUT_PEFT)), tmp_path, dataset=Unsupervised())
    with pytest.raises(TrainingError, match=r"loss of step 1 is no longer finite"):
        run.train()


def test_a_loss_scale_has_some_steps_to_recover(toy, tmp_path):
    model = prepare(toy_model(), recipe(WITHOUT_PEFT))
    callback, control = VlmLoraCallback(), TrainerControl()
    arguments = training_arguments(model, tmp_path)
    arguments.fp16 = True  # which a CPU does not take
    wild, fine = {"loss": float("inf")}, {"loss": 1.0, "grad_norm": 2.0}
    for step in range(1, 40):
        callback.on_log(arguments, TrainerState(global_step=step), control, logs=wild)
    callback.on_log(arguments, TrainerState(global_step=40), control, logs=fine)
    callback.on_log(arguments, TrainerState(global_step=90), control, logs=wild)
    with pytest.raises(TrainingError, match="loss of step 91"):
        callback.on_log(arguments, TrainerState(global_step=91), control, logs=wild)


def test_what_is_no_longer_finite_is_not_saved(toy, tmp_path):
    model = prepare(toy_model(), recipe(WITHOUT_PEFT))
    model.named_trainables()["aligner.query"].data[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"no longer finite.*aligner\.query"):
        model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("given", [{"preset": "lora"}, "lora"])
def test_arguments_of_something_else_than_a_recipe_are_refused(tmp_path, given):
    with pytest.raises(TrainingError, match="takes a prepared model or its recipe"):
        training_arguments(given, tmp_path)


def test_full_16_bit_evaluation_stops_the_run(toy, tmp_path):
    with pytest.raises(TrainingError, match="bf16_full_eval"):
        trainer(prepare(toy_model(), recipe(WITHOUT_PEFT)), tmp_path, bf16_full_eval=True)


def test_a_float16_model_without_loss_scaling_stops_the_run(toy, tmp_path):
    model = prepare(toy_model(dtype=torch.float16), recipe(WITHOUT_PEFT))
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(TrainingError, match="float16"):
        Trainer(model=model, args=arguments, callbacks=[VlmLoraCallback()])


def test_a_checkpoint_of_another_recipe_stops_resuming(toy, tmp_path):
    trainer(prepare(toy_model(), recipe(WITHOUT_PEFT)), tmp_path, max_steps=3).train()
    run = trainer(prepare(toy_model(), recipe(WITH_PEFT)), tmp_path)
    with pytest.raises(CheckpointError, match="another recipe"):
        run.train(resume_from_checkpoint=True)
