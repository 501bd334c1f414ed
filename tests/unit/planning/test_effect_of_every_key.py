"""Each key of the recipe always has an effect, or stands in a test of its refusal."""

from __future__ import annotations

import pytest
from effect_cases import LORA

from vlm_lora_plugin.planning.effect import EVALUATION_KEYS
from vlm_lora_plugin.recipe import Recipe

ALWAYS = {
    "family",
    "preset",
    "origin",
    "components",
    "rules",
    "seed",
    *(
        f"optimizer.{key}"
        for key in ("adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_type", "lr_scheduler_kwargs")
    ),
    "optimizer.max_grad_norm",
    *(f"training.{key}" for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps")),
    *(f"training.{key}" for key in ("logging_steps", "save_steps", "save_total_limit")),
    "training.dataloader_num_workers",
    "optimizer.decay",
    "loss_mean",
    "distributed",
    "evaluation.sample_answers",
    *(f"data.{key}" for key in Recipe().document()["data"] if key != "processor"),
    "hardware",
}
"""Keys that every job of every family feels."""

ELSEWHERE = {
    "lora.target_modules": "tests/unit/selection/test_no_effect.py",
    "optimizer.learning_rate": "tests/unit/selection/test_no_effect.py",
    "optimizer.weight_decay": "tests/unit/selection/test_no_effect.py",
    "training.global_batch_size": "tests/unit/test_recipe.py",
    "deepspeed": "tests/unit/test_recipe.py",
    "data.processor": "tests/unit/test_recipe.py",
}
"""Keys whose refusal is tested there."""

HERE = {
    "gradient_checkpointing",
    "answer_only_loss",
    "train_fixed_tables",
    "optimizer.warmup_ratio",
    "training.num_train_epochs",
    *(f"lora.{key}" for key in LORA),
    *EVALUATION_KEYS,
}


def leaves():
    for name, value in Recipe().document().items():
        if name in ("lora", "optimizer", "training", "data", "evaluation"):
            yield from (f"{name}.{key}" for key in value)
        else:
            yield name


@pytest.mark.parametrize("key", list(leaves()))
def test_each_key_of_the_recipe_always_has_an_effect_or_has_a_refusal(key):
    assert [key in ALWAYS, key in ELSEWHERE, key in HERE].count(True) == 1
