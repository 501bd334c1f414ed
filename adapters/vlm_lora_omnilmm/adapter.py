"""OmniLMM's answers to the questions of :mod:`vlm_lora_plugin.contract.hookspecs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_omnilmm.folder import MODEL_TYPE, recognises
from vlm_lora_omnilmm.names import COMPONENTS, FIXED_TABLE_NAME
from vlm_lora_omnilmm.presets import DEFAULT_PRESET, PRESETS
from vlm_lora_omnilmm.size import SIZE
from vlm_lora_plugin.contract import Family, LoadRequest
from vlm_lora_plugin.contract.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from vlm_lora_plugin.contract import GoldenCase, Patch, Processor
    from vlm_lora_plugin.contract.example import Example
    from vlm_lora_plugin.recipe import Recipe


@hookimpl
def describe_family() -> Family:
    """Describe OmniLMM."""
    return Family(
        name="omnilmm",
        title="OmniLMM",
        model_types=(MODEL_TYPE,),
        components=COMPONENTS,
        presets=PRESETS,
        default_preset=DEFAULT_PRESET,
        recognises=recognises,
        load=_load,
        architecture="vlm_lora_omnilmm.names:architecture",
        fixed_tables=(FIXED_TABLE_NAME,),
        auto_modules=("vlm_lora_omnilmm.modeling",),
        parse_record=_parse_record,
        read_golden_case=_read_golden_case,
        demo=_write_demo,
        size=SIZE,
    )


@hookimpl
def wrap_forward(model: nn.Module, recipe: Recipe) -> Sequence[Patch]:
    """Checkpoint what the recipe says, and let text-only batches train."""
    from vlm_lora_omnilmm.forward import patches

    return patches(model, recipe)


def _load(request: LoadRequest) -> tuple[PreTrainedModel, Processor | None]:
    from vlm_lora_omnilmm.processing import OmniLMMProcessor
    from vlm_lora_omnilmm.weights import load_model

    model = load_model(request)
    if not request.with_processor:
        return model, None
    return model, OmniLMMProcessor.from_pretrained(request.folder, model.config)


def _parse_record(record: Mapping[str, Any], folder: Path, origin: str) -> Example | None:
    from vlm_lora_omnilmm.records import parse_record

    return parse_record(record, folder, origin)


def _read_golden_case(folder: Path) -> GoldenCase | None:
    from vlm_lora_omnilmm.golden import read_golden_case

    return read_golden_case(folder)


def _write_demo(folder: Path) -> Mapping[str, Any]:
    from vlm_lora_omnilmm.tiny import DEMO_OVERRIDES, write_demo_folder

    write_demo_folder(folder)
    return DEMO_OVERRIDES
