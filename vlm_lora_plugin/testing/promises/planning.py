"""Recipes on hardware: every tier resolves, and its DeepSpeed document is one."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from typing import Any

from vlm_lora_plugin.documents import leaves
from vlm_lora_plugin.frameworks.trainer import training_arguments
from vlm_lora_plugin.loading import load
from vlm_lora_plugin.planning.plan import HardwarePlan, plan_hardware
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.planning.resolved import ResolvedRecipe
from vlm_lora_plugin.selection.resolve import resolve_selection
from vlm_lora_plugin.testing.subject import Subject
from vlm_lora_plugin.testing.verdict import NotApplicable, require

MACHINES = ("1x24", "1x40", "3x24", "8x80")


def hardware_tiers_resolve_for_every_preset(subject: Subject) -> None:
    """Each preset has settings for each machine, with reasons; a document where, and only where, ZeRO shards."""
    for where, recipe, plan in _plans(subject):
        require(plan.settings, f"{where}: the hardware sets nothing")
        silent = [setting.key for setting in plan.settings if not setting.reason]
        require(not silent, f"{where}: no reason is given for {silent}")
        require((plan.deepspeed is None) == (plan.stage == 0), f"{where}: stage {plan.stage}, {plan.deepspeed}")
        require(plan.memory is not None and plan.memory.total > 0, f"{where}: no memory is predicted")
        unknown = [name for name in recipe.gradient_checkpointing if name not in subject.architecture.repeating]
        require(not unknown, f"{where}: checkpoints {unknown}, which have no blocks")
        json.dumps(plan.document())


def deepspeed_reads_its_documents(subject: Subject) -> None:
    """DeepSpeed itself takes each document, with what transformers fills in for ``auto``."""
    if importlib.util.find_spec("deepspeed") is None:
        raise NotApplicable("DeepSpeed is not installed: pip install 'vlm-lora-plugin[deepspeed]'")
    from deepspeed.runtime.config import DeepSpeedConfig
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    read: list[Any] = []
    for where, recipe, plan in _plans(subject):
        if plan.deepspeed is None or plan.deepspeed in read:
            continue
        read.append(plan.deepspeed)
        filled = HfTrainerDeepSpeedConfig(plan.deepspeed)
        arguments = training_arguments(recipe, subject.work / "deepspeed", use_cpu=True)
        filled.trainer_config_process(arguments)
        filled.trainer_config_finalize(arguments, None, 100)
        open_values = [key for key, value in leaves(filled.config) if value == "auto"]
        require(not open_values, f"{where}: nobody fills in {open_values}")
        stage = DeepSpeedConfig(filled.config).zero_optimization_stage
        require(stage == plan.stage, f"{where}: DeepSpeed reads stage {stage}, not {plan.stage}")


def _plans(subject: Subject) -> Iterator[tuple[str, ResolvedRecipe, HardwarePlan]]:
    family, model = subject.family, load(subject.folder, device="meta")[0]
    for preset in family.presets:
        for machine in MACHINES:
            document = {"preset": preset, "hardware": machine}
            recipe = resolve_recipe(document, family, architecture=subject.architecture)
            trainables = resolve_selection(model, family, recipe)
            yield f"{preset} on {machine}", recipe, plan_hardware(recipe, family, model, trainables)
