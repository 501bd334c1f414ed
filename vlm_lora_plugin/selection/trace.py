"""What became of each rule of a recipe, for people who wonder why something is trained, or is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import Rule
    from vlm_lora_plugin.selection.trainables import TrainableSet


@dataclass(frozen=True)
class RuleTrace:
    """One rule applied to one model.

    Attributes:
        rule: The rule.
        of_recipe: Whether it is one of the recipe's; if not, the adapter or a policy added it.
        matched: Names of the base model's parameters that it matches, in the model's order.
        lost: Those of them that a later rule decides, each with that rule's index.
        trains: Canonical names of what learns because of it; PEFT's LoRA included.
    """

    rule: Rule
    of_recipe: bool
    matched: tuple[str, ...]
    lost: tuple[tuple[str, int], ...]
    trains: tuple[str, ...]


@dataclass(frozen=True)
class SelectionTrace:
    """What a recipe trains in one model, and what each rule, in order, had to do with it."""

    trainables: TrainableSet
    rules: tuple[RuleTrace, ...]
