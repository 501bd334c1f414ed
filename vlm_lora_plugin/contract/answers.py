"""What the hooks ``select_trainable`` and ``wrap_forward`` answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.recipe import Rule


@dataclass(frozen=True)
class TrainableSelection:
    """What ``select_trainable`` answers: rules in order, of which the last that matches a name decides.

    A parameter that no rule matches is frozen.
    """

    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Patch:
    """One reversible change of a model's forward pass that keeps its result.

    Attributes:
        name: Short and unique within the model: ``checkpoint vision``.
        reason: What it saves, in a few words, for the table that the user sees.
        apply: Changes the model and returns the function that undoes exactly that.
        serves: The recipe's key that it carries out, ``gradient_checkpointing.vision`` or ``answer_only_loss``;
            the core's own patch for that key then stays out. Empty for one that no key asks for.
    """

    name: str
    reason: str
    apply: Callable[[nn.Module], Callable[[], None]]
    serves: str = ""
