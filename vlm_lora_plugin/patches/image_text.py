"""The text-only patch of a model that derives from :class:`~vlm_lora_plugin.models.image_text.ImageTextModel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from vlm_lora_plugin.names import canonical_name
from vlm_lora_plugin.patches.text_only import keep_text_only_trainable
from vlm_lora_plugin.patterns import Matcher

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Architecture, Patch
    from vlm_lora_plugin.models.image_text import ImageTextModel


def text_only_batches(model: ImageTextModel, architecture: Architecture) -> Patch:
    """Return the patch that lets a batch without an image train; ``prepare`` applies it to every such model.

    Args:
        model: The model, perhaps with LoRA in it; its ``zeroed_without_images`` get a gradient of zero.
        architecture: Its ``image_only`` says what such a batch does not reach.
    """
    return keep_text_only_trainable(
        architecture.trunk,
        image_only_names(model, architecture),
        images="image_mask",
        look=_look_at_grey,
        splicer="",
        zeroed=_names(model, *model.zeroed_without_images),
    )


def image_only_names(model: nn.Module, architecture: Architecture) -> list[str]:
    """Return the names of the modules, and the canonical ones of single parameters, that ``image_only`` matches."""
    return _names(model, *architecture.image_only)


def _names(model: nn.Module, *patterns: str) -> list[str]:
    matcher = Matcher(patterns)
    modules = matcher.among(name for name, _ in model.named_modules())
    return modules + matcher.among(canonical_name(name) for name, _ in model.named_parameters())


def _look_at_grey(model: nn.Module, embeds: torch.Tensor) -> torch.Tensor:
    return cast("ImageTextModel", model).features_of_grey(embeds)
