"""XComposer's answers to the questions of :mod:`vlm_lora_plugin.contract.hookspecs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.contract import Family, LoadRequest, ProcessorOption
from vlm_lora_plugin.contract.hookspecs import hookimpl
from vlm_lora_xcomposer import names
from vlm_lora_xcomposer.advice import advise
from vlm_lora_xcomposer.folder import MODEL_TYPE, recognises
from vlm_lora_xcomposer.presets import DEFAULT_PRESET, PRESETS
from vlm_lora_xcomposer.size import SIZE
from vlm_lora_xcomposer.variants import VARIANTS

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from vlm_lora_plugin.contract import GoldenCase, MixturePart, Patch, Processor, TrainableSelection
    from vlm_lora_plugin.contract.example import Example
    from vlm_lora_plugin.recipe import Recipe

PROCESSOR_OPTIONS = (ProcessorOption("hd_num", "Most crops that one image is cut into, at least 1 (4KHD and 2.5)."),)


@hookimpl
def describe_family() -> Family:
    """Describe InternLM-XComposer 2, 2-4KHD and 2.5."""
    return Family(
        name="xcomposer",
        title="InternLM-XComposer",
        model_types=(MODEL_TYPE,),
        components=names.COMPONENTS,
        presets=PRESETS,
        default_preset=DEFAULT_PRESET,
        recognises=recognises,
        load=_load,
        architecture="vlm_lora_xcomposer.names:architecture",
        variants=tuple(VARIANTS),
        fixed_tables=(names.POST_NORM_NAME, names.VIDEO_NAME),
        auto_modules=("vlm_lora_xcomposer.modeling",),
        parse_record=_parse_record,
        read_golden_case=_read_golden_case,
        processor_options=PROCESSOR_OPTIONS,
        read_mixture=_read_mixture,
        demo=_write_demo,
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

    return patches(model, recipe)


def _load(request: LoadRequest) -> tuple[PreTrainedModel, Processor | None]:
    from vlm_lora_xcomposer.weights import load_model

    model = load_model(request)
    if not request.with_processor:
        return model, None
    from vlm_lora_xcomposer.processing import XComposerProcessor

    return model, XComposerProcessor.from_pretrained(request.folder, model.config, request.processor)


def _parse_record(record: Mapping[str, Any], folder: Path, origin: str) -> Example | None:
    from vlm_lora_xcomposer.records import parse_record

    return parse_record(record, folder, origin)


def _read_mixture(path: Path) -> Sequence[MixturePart] | None:
    from vlm_lora_xcomposer.mixtures import read_mixture

    return read_mixture(path)


def _read_golden_case(folder: Path) -> GoldenCase | None:
    from vlm_lora_xcomposer.golden import read_golden_case

    return read_golden_case(folder)


def _write_demo(folder: Path) -> None:
    from vlm_lora_xcomposer.tiny import write_demo_folder

    write_demo_folder(folder)
