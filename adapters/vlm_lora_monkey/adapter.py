"""Monkey's answers to the questions of :mod:`vlm_lora_plugin.contract.hookspecs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlm_lora_monkey.folder import MODEL_TYPE, VARIANTS, recognises
from vlm_lora_monkey.presets import DEFAULT_PRESET, PRESETS
from vlm_lora_monkey.size import SIZE
from vlm_lora_plugin.contract import DataFormats, Family, TestSupport, hookimpl

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.contract import Hardware, Patch
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
        presets=PRESETS,
        default_preset=DEFAULT_PRESET,
        recognises=recognises,
        architecture="vlm_lora_monkey.names:architecture",
        load_model="vlm_lora_monkey.weights:load_model",
        load_processor="vlm_lora_monkey.processing:load_processor",
        data_formats=DataFormats(
            parse_record="vlm_lora_monkey.records:parse_record",
        ),
        test_support=TestSupport(
            write_tiny_model="vlm_lora_monkey.tiny:write_demo_folder",
            read_golden_case="vlm_lora_monkey.golden:read_golden_case",
        ),
        variants=VARIANTS,
        auto_modules=("vlm_lora_monkey.modeling",),
        size=SIZE,
    )


@hookimpl
def wrap_forward(model: nn.Module, recipe: Recipe) -> Sequence[Patch]:
    """Nothing beside the core's patches, and a model of another class is refused."""
    from vlm_lora_monkey.forward import patches

    return patches(model)


@hookimpl
def deepspeed_config(recipe: Recipe, hardware: Hardware) -> Mapping[str, Any]:
    """Keep the tower's LoRA whole under ZeRO-3."""
    return {"zero_optimization": {"stage3_param_persistence_threshold": LARGEST_LORA_TENSOR}}
