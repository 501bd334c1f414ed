"""Block-wise gradient checkpointing of one part of a model."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from vlm_lora_plugin.contract import Patch
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.vocabulary import Component

_ATTRIBUTES = ("gradient_checkpointing", "_gradient_checkpointing_func")


def checkpoint_blocks(component: Component) -> Patch:
    """Return the patch that recomputes a component's blocks in the backward pass.

    It uses the switches of transformers' ``GradientCheckpointingLayer``, on these blocks alone and always
    non-reentrant: inputs without gradient are fine, and results are equal to the last bit.
    """
    return Patch(
        name=f"checkpoint {component.name}",
        reason="keeps one block's activations at a time",
        apply=partial(_apply, component),
    )


def _apply(component: Component, model: nn.Module) -> Callable[[], None]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = [
        module for name, module in model.named_modules() if component.blocks and re.fullmatch(component.blocks, name)
    ]
    if not blocks or not all(isinstance(block, GradientCheckpointingLayer) for block in blocks):
        raise ModelError(
            f"The {component.name} blocks of this {type(model).__name__} cannot be checkpointed",
            why="They are not this package's own, or were replaced.",
            fix=f"Load the model with vlm_lora_plugin.load, or set gradient_checkpointing.{component.name}: false.",
        )
    before = [{key: vars(block)[key] for key in _ATTRIBUTES if key in vars(block)} for block in blocks]
    for block in blocks:
        _set(block, {"gradient_checkpointing": True, "_gradient_checkpointing_func": _checkpoint})
    return partial(_restore, blocks, before)


def _restore(blocks: list[nn.Module], before: list[dict[str, Any]]) -> None:
    for block, attributes in zip(blocks, before, strict=True):
        for key in _ATTRIBUTES:
            vars(block).pop(key, None)
        _set(block, attributes)


def _set(block: nn.Module, attributes: dict[str, Any]) -> None:
    for key, value in attributes.items():
        setattr(block, key, value)


_checkpoint = partial(checkpoint, use_reentrant=False)
