"""Monkey's answers to the questions of :mod:`vlm_lora_plugin.contract.hookspecs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_monkey.folder import MODEL_TYPE, VARIANTS, recognises
from vlm_lora_monkey.names import COMPONENTS, FIXED_TABLE_NAME
from vlm_lora_monkey.presets import DEFAULT_PRESET, PRESETS
from vlm_lora_monkey.size import SIZE
from vlm_lora_plugin.contract import Family, LoadRequest
from vlm_lora_plugin.contract.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from vlm_lora_plugin.contract import GoldenCase, Hardware, Patch, Processor
    from vlm_lora_plugin.contract.example import Example
    from vlm_lora_plugin.recipe import Recipe

# The tower has 576 LoRA adapters, each called once an image: gathering their 1152 matrices one by one would cost more
# time than holding them whole costs memory, which is 0.1 GiB.
LARGEST_LORA_TENSOR = 79_872


@hookimpl
def describe_family() -> Family:
    """Describe Monkey."""
    return Family(
        name="monkey",
        title="Monkey",
        model_types=(MODEL_TYPE,),
        components=COMPONENTS,
        presets=PRESETS,
        default_preset=DEFAULT_PRESET,
        recognises=recognises,
        load=_load,
        architecture="vlm_lora_monkey.names:architecture",
        variants=VARIANTS,
        fixed_tables=(FIXED_TABLE_NAME,),
        auto_modules=("vlm_lora_monkey.modeling",),
        parse_record=_parse_record,
        read_golden_case=_read_golden_case,
        demo=_write_demo,
        size=SIZE,
    )


@hookimpl
def wrap_forward(model: nn.Module, recipe: Recipe) -> Sequence[Patch]:
    """Checkpoint what the recipe says, and let text-only batches train."""
    from vlm_lora_monkey.forward import patches

    return patches(model, recipe)


@hookimpl
def deepspeed_config(recipe: Recipe, hardware: Hardware) -> Mapping[str, Any]:
    """Keep the tower's LoRA whole under ZeRO-3."""
    return {"zero_optimization": {"stage3_param_persistence_threshold": LARGEST_LORA_TENSOR}}


def _load(request: LoadRequest) -> tuple[PreTrainedModel, Processor | None]:
    from vlm_lora_monkey.processing import MonkeyProcessor
    from vlm_lora_monkey.weights import load_model

    model = load_model(request)
    if not request.with_processor:
        return model, None
    return model, MonkeyProcessor.from_pretrained(request.folder, model.config)


def _parse_record(record: Mapping[str, Any], folder: Path, origin: str) -> Example | None:
    from vlm_lora_monkey.records import parse_record

    return parse_record(record, folder, origin)


def _read_golden_case(folder: Path) -> GoldenCase | None:
    from vlm_lora_monkey.golden import read_golden_case

    return read_golden_case(folder)


def _write_demo(folder: Path) -> None:
    from vlm_lora_monkey.tiny import write_demo_folder

    write_demo_folder(folder)
