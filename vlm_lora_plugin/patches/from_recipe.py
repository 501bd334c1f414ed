"""The core's own patches, for every family's model: those that a recipe asks for by name, and text-only batches.

A family whose ``wrap_forward`` answers a patch that serves one of these keys takes the core's place for that key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models.image_text import ImageTextModel
from vlm_lora_plugin.patches.answer_only import KEY, answer_only_logits, why_not_answer_only
from vlm_lora_plugin.patches.checkpointing import checkpoint_blocks, is_checkpointed, why_not_checkpointed
from vlm_lora_plugin.patches.image_text import text_only_batches
from vlm_lora_plugin.patches.text_only import TEXT_ONLY

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Architecture, Patch
    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.vocabulary import Component

_CHECKPOINTING = "gradient_checkpointing"


def refuse_unknown_model(model: nn.Module, model_class: type[nn.Module]) -> None:
    """Refuse a model whose forward pass is not the one that a family's patches were written for.

    Raises:
        ModelError: It is of another class.
    """
    if not isinstance(model, model_class):
        raise ModelError(
            f"The forward pass of this {type(model).__module__}.{type(model).__name__} is not known here",
            fix="Load the model with vlm_lora_plugin.load(folder).",
        )


def no_patches(model_class: type[nn.Module]) -> Callable[[nn.Module], tuple[Patch, ...]]:
    """Return what answers ``wrap_forward`` with no patch, and refuses models of another class.

    For a family that needs none beside the core's.
    """

    def patches(model: nn.Module) -> tuple[Patch, ...]:
        refuse_unknown_model(model, model_class)
        return ()

    return patches


def asked_keys(recipe: Recipe, architecture: Architecture) -> tuple[str, ...]:
    """Return the keys that a recipe switches on, checkpointing in the order of the components."""
    switches = recipe.gradient_checkpointing
    checkpointed = [f"{_CHECKPOINTING}.{part.name}" for part in architecture.components if switches.get(part.name)]
    return (*checkpointed, *([KEY] if recipe.answer_only_loss else []))


def why_without_effect(key: str, model: nn.Module, architecture: Architecture) -> str | None:
    """Return why the core's patch for a key cannot work in a model, the end of a sentence; or None where it can."""
    part = _component(key, architecture)
    return why_not_answer_only(model, architecture.head) if part is None else why_not_checkpointed(part, model)


def with_core_patches(
    own: Sequence[Patch], recipe: Recipe, model: nn.Module, architecture: Architecture
) -> tuple[Patch, ...]:
    """Return a family's own patches, and after them the core's.

    That is the one for text-only batches, where the model derives from ``ImageTextModel`` and the architecture says
    what only an image reaches, and one for each key asked for; each of them where no patch of the family's does it.
    """
    served = {patch.serves for patch in own}
    if isinstance(model, ImageTextModel) and architecture.image_only and TEXT_ONLY not in {p.name for p in own}:
        own = (*own, text_only_batches(model, architecture))
    return (*own, *(_patch(key, architecture) for key in asked_keys(recipe, architecture) if key not in served))


def check_applied(model: nn.Module, patches: Sequence[Patch], architecture: Architecture) -> None:
    """Check, when all patches are applied, that the core's checkpointing is on in at least one block of each part.

    Raises:
        ModelError: It is not: a patch after it has switched it off.
    """
    for patch in patches:
        part = _component(patch.serves, architecture)
        if part is not None and not why_not_checkpointed(part, model) and not is_checkpointed(part, model):
            raise ModelError(
                f"{patch.serves} is on, but no block of this {type(model).__name__} is checkpointed",
                why="The patch that serves the key did nothing, or another one has undone it.",
                fix=f"Set {_CHECKPOINTING}: {{{part.name}: false}}, and tell the author of the family's plugin.",
            )


def _patch(key: str, architecture: Architecture) -> Patch:
    part = _component(key, architecture)
    return answer_only_logits(architecture.head) if part is None else checkpoint_blocks(part)


def _component(key: str, architecture: Architecture) -> Component | None:
    table, _, name = key.partition(".")
    return next((part for part in architecture.components if table == _CHECKPOINTING and part.name == name), None)
