"""XComposer's answers to the questions of :mod:`vlm_lora_plugin.contract.hookspecs`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm_lora_plugin.contract import DataFormats, Family, ProcessorOption, TestSupport, hookimpl
from vlm_lora_xcomposer.advice import advise
from vlm_lora_xcomposer.folder import MODEL_TYPE, recognises
from vlm_lora_xcomposer.presets import DEFAULT_PRESET, PRESETS
from vlm_lora_xcomposer.size import SIZE
from vlm_lora_xcomposer.variants import VARIANTS

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.contract import Patch, TrainableSelection
    from vlm_lora_plugin.recipe import Recipe

PROCESSOR_OPTIONS = (
    ProcessorOption("hd_num", "Most crops that one image is cut into, at least 1 (4KHD and 2.5).", least=1),
)


@hookimpl
def describe_family() -> Family:
    """Describe InternLM-XComposer 2, 2-4KHD and 2.5."""
    return Family(
        name="xcomposer",
        title="InternLM-XComposer",
        model_types=(MODEL_TYPE,),
        presets=PRESETS,
        default_preset=DEFAULT_PRESET,
        recognises=recognises,
        architecture="vlm_lora_xcomposer.names:architecture",
        load_model="vlm_lora_xcomposer.weights:load_model",
        load_processor="vlm_lora_xcomposer.processing:load_processor",
        data_formats=DataFormats(
            parse_record="vlm_lora_xcomposer.records:parse_record",
            read_mixture="vlm_lora_xcomposer.mixtures:read_mixture",
            processor_options=PROCESSOR_OPTIONS,
            upstream_labels=True,
        ),
        test_support=TestSupport(
            write_tiny_model="vlm_lora_xcomposer.tiny:write_demo_folder",
            read_golden_case="vlm_lora_xcomposer.golden:read_golden_case",
        ),
        variants=tuple(VARIANTS),
        auto_modules=("vlm_lora_xcomposer.modeling",),
        size=SIZE,
        swift_model_types=tuple(sorted(VARIANTS)),
        advise=advise,
    )


@hookimpl
def select_trainable(model: nn.Module, recipe: Recipe) -> TrainableSelection:
    """The recipe's own rules, unless they ask for DoRA."""
    from vlm_lora_xcomposer.selection import select

    return select(recipe)


@hookimpl
def wrap_forward(model: nn.Module, recipe: Recipe) -> Sequence[Patch]:
    """What makes the forward pass leaner; see :mod:`vlm_lora_xcomposer.forward`."""
    from vlm_lora_xcomposer.forward import patches

    return patches(model)
