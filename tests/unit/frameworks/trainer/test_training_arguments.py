"""A recipe becomes TrainingArguments."""

from __future__ import annotations

import pytest
import torch
from toy_family import toy_model

from vlm_lora_plugin import Recipe, prepare, training_arguments
from vlm_lora_plugin.errors import TrainingError
from vlm_lora_plugin.planning.resolve import resolve_recipe


def test_the_recipes_values_arrive(toy, tmp_path):
    recipe = resolve_recipe(
        {
            "preset": "lora",
            "seed": 7,
            "optimizer": {"learning_rate": 3e-4, "warmup_ratio": 0.25, "adam_beta2": 0.9, "max_grad_norm": 0.5},
            "training": {"gradient_accumulation_steps": 3, "max_steps": 40, "save_steps": 5},
        },
        toy,
    )
    arguments = training_arguments(recipe, tmp_path)
    assert arguments.get_warmup_steps(40) == 10
    assert (arguments.learning_rate, arguments.weight_decay, arguments.adam_beta2) == (3e-4, 0.1, 0.9)
    assert (arguments.gradient_accumulation_steps, arguments.max_steps, arguments.save_steps) == (3, 40, 5)
    assert (arguments.seed, arguments.data_seed, arguments.max_grad_norm) == (7, 7, 0.5)
    assert arguments.lr_scheduler_type == "cosine"
    assert arguments.report_to == []
    assert not arguments.remove_unused_columns
    assert not arguments.gradient_checkpointing
    assert arguments.eval_strategy == "no"


def test_upstreams_defaults(toy, tmp_path):
    arguments = training_arguments(resolve_recipe("lora", toy), tmp_path)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (1, 16)
    assert (arguments.learning_rate, arguments.adam_beta2, arguments.weight_decay) == (1e-5, 0.95, 0.1)
    assert arguments.get_warmup_steps(100) == 2


@pytest.mark.parametrize(("eval_steps", "strategy"), [(None, "epoch"), (5, "steps")])
def test_evaluation_follows_the_recipe(toy, tmp_path, eval_steps, strategy):
    recipe = resolve_recipe({"preset": "lora", "training": {"eval_steps": eval_steps}}, toy)
    arguments = training_arguments(recipe, tmp_path, evaluate=True)
    assert arguments.eval_strategy == strategy
    assert arguments.prediction_loss_only
    assert arguments.eval_steps == eval_steps


def test_a_prepared_model_brings_its_recipe_and_dtype(toy, tmp_path):
    model = prepare(toy_model(dtype=torch.bfloat16), {"preset": "lora", "seed": 9})
    arguments = training_arguments(model, tmp_path, logging_steps=3)
    assert (arguments.bf16, arguments.fp16, arguments.seed, arguments.logging_steps) == (True, False, 9, 3)


@pytest.mark.parametrize("dtype", [None, "float32", torch.float32])
def test_fp32_trains_without_autocast(toy, tmp_path, dtype):
    arguments = training_arguments(resolve_recipe("lora", toy), tmp_path, dtype=dtype)
    assert not arguments.bf16
    assert not arguments.fp16


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_bf16_trains_under_autocast_also_on_a_cpu(toy, tmp_path, dtype):
    assert training_arguments(resolve_recipe("lora", toy), tmp_path, dtype=dtype).bf16


def test_float16_on_a_cpu_is_an_error(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="float16"):
        training_arguments(resolve_recipe("lora", toy), tmp_path, dtype=torch.float16)


def test_a_recipe_whose_preset_is_not_resolved_is_an_error(tmp_path):
    with pytest.raises(TrainingError, match="preset 'lora'"):
        training_arguments(Recipe(preset="lora"), tmp_path)
