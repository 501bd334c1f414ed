"""Block-wise gradient checkpointing of one part of a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from vlm_lora_plugin.contract import Patch
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.patterns import Matcher
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
        serves=f"gradient_checkpointing.{component.name}",
    )


def blocks_of(component: Component, model: nn.Module) -> list[nn.Module]:
    """Return a component's repeating blocks.

    They are the modules that ``component.blocks`` matches; where the component has no such pattern, the outermost
    ``GradientCheckpointingLayer`` below its prefixes.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    if component.blocks:
        is_block = Matcher(component.blocks, what=f"The pattern of blocks of {component.name}")
        return [module for name, module in model.named_modules() if is_block(name)]
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(f"{name}.".startswith(f"{prefix}.") for prefix in component.prefixes)
        nested = any(name.startswith(f"{outer}.") for outer in found)
        if inside and not nested and isinstance(module, GradientCheckpointingLayer):
            found[name] = module
    return list(found.values())


def why_not_checkpointed(component: Component, model: nn.Module) -> str | None:
    """Return why :func:`checkpoint_blocks` cannot work in a model, the end of a sentence; or None where it can."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = blocks_of(component, model)
    if component.blocks and not blocks:
        return f"the pattern of its blocks, '{component.blocks}', matches no module: the family's plugin is wrong there"
    if not blocks:
        return f"the {component.name} of this {type(model).__name__} has no repeating blocks"
    others = sorted({type(block).__name__ for block in blocks if not isinstance(block, GradientCheckpointingLayer)})
    if others:
        return f"its blocks ({', '.join(others)}) are not transformers' GradientCheckpointingLayer"
    return None


def is_checkpointed(component: Component, model: nn.Module) -> bool:
    """Return whether at least one of a component's blocks is recomputed."""
    return any(getattr(block, "gradient_checkpointing", False) for block in blocks_of(component, model))


def _apply(component: Component, model: nn.Module) -> Callable[[], None]:
    why = why_not_checkpointed(component, model)
    if why is not None:
        raise ModelError(
            f"The {component.name} blocks of this {type(model).__name__} cannot be checkpointed",
            why=f"{why[0].upper()}{why[1:]}.",
            fix=f"Set gradient_checkpointing: {{{component.name}: false}}.",
        )
    blocks = blocks_of(component, model)
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
