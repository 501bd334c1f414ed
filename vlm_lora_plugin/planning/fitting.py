"""Fitting a recipe to its hardware: what the user set stays, the tier fills in the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.errors import HardwareError
from vlm_lora_plugin.planning.deepspeed import given_stage
from vlm_lora_plugin.planning.tiers import Choice, Tier, choose_tier

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.recipe import Recipe

_ROWS = "per_device_train_batch_size"
_STEPS = "gradient_accumulation_steps"
_TOTAL = "global_batch_size"


def fitted(merged: Mapping[str, Any], given: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Return what the hardware of a recipe sets, where the user set nothing.

    Args:
        merged: The recipe's document, preset included.
        given: What the user set of it.
        family: Whose model it is.

    Raises:
        RecipeError: The document is no recipe.
        HardwareError: Batches that the user set do not multiply to the global batch, or stages differ.
    """
    from vlm_lora_plugin.recipe.schema import Recipe

    recipe = Recipe.parse({**merged, "family": family.name})
    tier = tier_of(recipe, family)
    document: dict[str, Any] = {"hardware": {"zero_stage": tier.stage}}
    if "answer_only_loss" not in given:
        document["answer_only_loss"] = tier.value("answer_only_loss")
    own = given.get("gradient_checkpointing", {})
    document["gradient_checkpointing"] = {
        name: choice.value
        for choice in tier.choices
        for key, _, name in [choice.key.partition(".")]
        if key == "gradient_checkpointing" and name not in own
    }
    document["training"] = _batches(recipe, tier, given.get("training", {}))
    return document


def tier_of(recipe: Recipe, family: Family) -> Tier:
    """Return the tier of a recipe that names its hardware.

    Raises:
        HardwareError: It names none, or two stages.
    """
    hardware = recipe.hardware
    if hardware is None:
        raise HardwareError("The recipe names no hardware", fix="Write hardware: 3x24, for three devices of 24 GiB.")
    machine = hardware.machine()
    given = given_stage(recipe, family, machine)
    if hardware.zero_stage is not None:
        # A resolved recipe names its stage, too: it is the user's only where nothing else would have led there.
        unset = recipe.model_copy(update={"hardware": hardware.model_copy(update={"zero_stage": None})})
        open_stage = given_stage(unset, family, machine)
        tier = choose_tier(recipe, family, machine, offload=hardware.offload, stage=open_stage)
        if tier.stage == hardware.zero_stage:
            return tier
        why = tier.reason("hardware.zero_stage")
        given = hardware.zero_stage, f"set in the recipe; else {tier.stage}: {why}"
    return choose_tier(recipe, family, machine, offload=hardware.offload, stage=given)


@dataclass(frozen=True)
class Fitted:
    """One setting of a recipe beside what its hardware would set.

    Attributes:
        key: The recipe's key.
        value: The recipe's value.
        reason: Why; for one that the user set, what the hardware would set and why.
        by_user: Whether the recipe differs from the tier.
    """

    key: str
    value: Any
    reason: str
    by_user: bool


def explain_fit(recipe: Recipe, family: Family) -> tuple[Fitted, ...]:
    """Return what the hardware of a resolved recipe set, and what the recipe set in its place, with reasons."""
    return tuple(_beside(choice, recipe) for choice in tier_of(recipe, family).choices)


def _beside(choice: Choice, recipe: Recipe) -> Fitted:
    value: Any = recipe.document()
    for step in choice.key.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    if value == choice.value:
        return Fitted(choice.key, value, choice.reason, by_user=False)
    return Fitted(choice.key, value, f"set in the recipe; else {choice.value}: {choice.reason}", by_user=True)


def _batches(recipe: Recipe, tier: Tier, own: Mapping[str, Any]) -> dict[str, int]:
    ranks = tier.hardware.ranks
    wanted = own.get(_TOTAL)
    if wanted is not None and wanted % ranks:
        below = wanted // ranks * ranks
        raise HardwareError(
            f"training.{_TOTAL} is {wanted}, which does not divide by {ranks} devices ({tier.hardware})",
            fix=f"Give {f'{below} or ' if below else ''}{below + ranks}.",
        )
    if _ROWS not in own and _STEPS not in own:
        return {key: tier.value(f"training.{key}") for key in (_ROWS, _STEPS, _TOTAL)}
    rows = own.get(_ROWS, tier.value(f"training.{_ROWS}"))
    if _STEPS in own:
        steps = own[_STEPS]
        rows = own.get(_ROWS, max((wanted or ranks * steps) // (ranks * steps), 1))
    else:
        steps = max(round(tier.value(f"training.{_TOTAL}") / (ranks * rows)), 1)
    total = ranks * rows * steps
    if wanted is not None and wanted != total:
        raise HardwareError(
            f"training.{_TOTAL} is {wanted}, but {ranks} devices x {_ROWS} {rows} x {_STEPS} {steps} are {total}",
            fix=f"Leave one of the three out, or set {_TOTAL} to {total}.",
        )
    return {_ROWS: rows, _STEPS: steps, _TOTAL: total}
