"""Upstream's defaults, and that every group of every preset learns."""

from __future__ import annotations

import io
from collections import defaultdict

import pytest
import torch
from rich.console import Console

from vlm_lora_omnilmm.tiny import tiny_model, write_demo_folder
from vlm_lora_plugin import load
from vlm_lora_plugin.demo.digits import write_digits
from vlm_lora_plugin.job.train import run
from vlm_lora_plugin.job.train_job import TrainJob
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.selection.resolve import resolve_selection

GROUPS = {
    "lora": {"language.lora": 1e-4, "aligner.full": 1e-6, "embeddings.full": 1e-6},
    "lora-text": {"language.lora": 1e-4},
    "lora+vision": {"language.lora": 1e-4, "aligner.full": 1e-6, "embeddings.full": 1e-6, "vision.full": 1e-6},
}
STEPS = 200


def resolved(preset):
    return resolve_recipe(preset, get_manager().family("omnilmm"))


@pytest.mark.parametrize("preset", GROUPS)
def test_groups_and_rates_are_those_of_the_preset(preset):
    recipe = resolved(preset)
    selection = resolve_selection(tiny_model(), get_manager().family("omnilmm"), recipe)

    rates = {p.group: recipe.optimizer.rate(*p.group.split(".")) for p in selection.parameters}
    assert rates == GROUPS[preset]


@pytest.mark.parametrize("preset", GROUPS)
def test_numbers_are_upstreams(preset):
    recipe = resolved(preset)

    assert (recipe.lora.r, recipe.lora.lora_alpha, recipe.lora.lora_dropout) == (64, 64, 0.05)
    assert (
        recipe.optimizer.weight_decay_of("language", "lora")
        == recipe.optimizer.weight_decay_of("aligner", "full")
        == 0.1
    )
    assert (recipe.optimizer.adam_beta2, recipe.optimizer.warmup_ratio) == (0.95, 0.01)
    assert (recipe.optimizer.lr_scheduler_type, recipe.data.max_length) == ("cosine", 2048)


@pytest.mark.slow
@pytest.mark.parametrize("preset", GROUPS)
def test_every_group_learns_over_some_hundred_steps(preset, tmp_path):
    """On the demo's data with the rates raised as a tiny model needs them; the groups are the preset's own."""
    torch.set_num_threads(1)
    base = tmp_path / "base"
    write_demo_folder(base)
    train, _ = write_digits(tmp_path / "data")
    overrides = {
        "preset": preset,
        "optimizer": {"learning_rate": {"default": 1e-3, "lora": 2e-3}},
        "training": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": STEPS},
        "gradient_checkpointing": {"vision": False, "language": False},
    }
    job = TrainJob(model=base, data=train, output=tmp_path / "out", overrides=overrides, dtype="fp32")
    result = run(job, Console(file=io.StringIO()))

    before = dict(load(base)[0].named_parameters())
    moved, total = defaultdict(float), defaultdict(float)
    trained = result.model.named_trainables()
    for parameter in result.model.vlm_lora.trainable.parameters:
        tensor = trained[parameter.name].detach()
        start = before[parameter.name].detach() if parameter.name in before else torch.zeros_like(tensor)
        if not parameter.name.endswith("lora_A.weight"):  # drawn by key; B, which starts at zero, tells more
            moved[parameter.group] += float((tensor - start).square().sum())
            total[parameter.group] += float(start.square().sum() or 1.0)
    assert moved.keys() == GROUPS[preset].keys()
    for group, amount in moved.items():
        share = (amount / total[group]) ** 0.5
        print(f"{preset} {group}: moved by {share:.3f}, loss {result.first_loss:.3f} -> {result.last_loss:.3f}")  # noqa: T201
        assert share > 0.01, group
    assert result.steps == STEPS
    assert result.last_loss < 0.7 * result.first_loss
