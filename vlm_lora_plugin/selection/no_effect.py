"""The refusal of settings that would have no effect in a model: rates and LoRA targets of nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm_lora_plugin.errors import RecipeError, SelectionError, nearest
from vlm_lora_plugin.recipe.optimizer import COMMON_RATE_KEYS, RATE_KEYS
from vlm_lora_plugin.vocabulary import MEANS

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.selection.layout import Layout
    from vlm_lora_plugin.selection.matching import Match

_WHY = "A setting without effect is most often a slip."
_BROAD_KEYS = {"default", *MEANS}


def check_rates(recipe: Recipe, layout: Layout, matches: Sequence[Match]) -> None:
    """Refuse rates and decays of a group that no rule has, or of a component that no rule trains in that way.

    The rules are those that the adapter answered, so that a group may be one that its hook adds. A rule counts
    also where a later one takes all it matched, so that a preset's rates fit a recipe that freezes a part of it.

    Raises:
        RecipeError: Names the key and the nearest that would apply.
    """
    groups = {match.rule.group for match in matches if match.rule.group}
    trained = {
        (layout.component_of[name].name, match.rule.means)
        for match in matches
        if match.rule.means != "frozen"
        for name in match.parameters
    }
    places = {*groups, *(component for component, _ in trained), *(f"{c}.{means}" for c, means in trained)}
    for table in RATE_KEYS:
        for key in getattr(recipe.optimizer, table):
            if key in _BROAD_KEYS or key in places:
                continue
            if key in COMMON_RATE_KEYS:
                component, _, means = key.partition(".")
                raise RecipeError(
                    f"optimizer.{table} has the key '{key}', but no rule trains "
                    f"{component}{f' by {means}' if means else ''}",
                    why=_WHY,
                    fix=f"Remove it, or train it: components: {{{component}: {means or 'lora'}}}. "
                    f"Keys that apply: {', '.join(sorted(places)) or 'none'}.",
                )
            raise RecipeError(
                f"optimizer.{table} has the key '{key}', which no rule has as its group",
                fix=nearest(key, [*COMMON_RATE_KEYS, *sorted(groups)]),
            )


def check_targets(recipe: Recipe, layout: Layout, matches: Sequence[Match]) -> None:
    """Refuse ``lora.target_modules`` of a component in which no rule puts LoRA on any of them.

    Raises:
        SelectionError: Names the component.
    """
    for component, suffixes in recipe.lora.target_modules.items():
        weights = {f"{layer}.weight" for layer in layout.layers_named(suffixes, component)}
        if suffixes and not any(match.rule.means == "lora" and weights & match.parameters for match in matches):
            raise SelectionError(
                f"lora.target_modules.{component} names layers, but no rule gives the component {component} lora",
                why=_WHY,
                fix=f"Add components: {{{component}: lora}}, or remove the targets.",
            )
