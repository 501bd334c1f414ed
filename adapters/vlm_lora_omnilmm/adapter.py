"""OmniLMM's answers to the questions of :mod:`vlm_lora_plugin.contract.hookspecs`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm_lora_omnilmm.folder import MODEL_TYPE, recognises
from vlm_lora_omnilmm.presets import DEFAULT_PRESET, PRESETS
from vlm_lora_omnilmm.size import SIZE
from vlm_lora_plugin.contract import DataFormats, Family, TestSupport, hookimpl

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.contract import Patch
    from vlm_lora_plugin.recipe import Recipe


@hookimpl
def describe_family() -> Family:
    """Describe OmniLMM."""
    return Family(
        name="omnilmm",
        title="OmniLMM",
        model_types=(MODEL_TYPE,),
        presets=PRESETS,
        default_preset=DEFAULT_PRESET,
        recognises=recognises,
        architecture="vlm_lora_omnilmm.names:architecture",
        load_model="vlm_lora_omnilmm.weights:load_model",
        load_processor="vlm_lora_omnilmm.processing:load_processor",
        data_formats=DataFormats(
            parse_record="vlm_lora_omnilmm.records:parse_record",
            upstream_labels=True,
        ),
        test_support=TestSupport(
            write_tiny_model="vlm_lora_omnilmm.tiny:write_demo_folder",
            read_golden_case="vlm_lora_omnilmm.golden:read_golden_case",
        ),
        auto_modules=("vlm_lora_omnilmm.modeling",),
        size=SIZE,
    )


@hookimpl
def wrap_forward(model: nn.Module, recipe: Recipe) -> Sequence[Patch]:
    """Nothing beside the core's patches, and a model of another class is refused."""
    from vlm_lora_omnilmm.forward import patches

    return patches(model)
