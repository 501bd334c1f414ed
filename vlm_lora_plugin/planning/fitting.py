"""Fitting a recipe to its hardware: what the user set stays, the tier fills in the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.documents import nested, value_at
from vlm_lora_plugin.errors import HardwareError
from vlm_lora_plugin.planning.stage import STAGE, given_stage
from vlm_lora_plugin.planning.tiers import Choice, Tier, choose_tier
from vlm_lora_plugin.recipe import Source

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Architecture, Family
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe
    from vlm_lora_plugin.recipe import TrainingSettings
    from vlm_lora_plugin.vocabulary import Hardware

ROWS = "training.per_device_train_batch_size"
STEPS = "training.gradient_accumulation_steps"
TOTAL = "training.global_batch_size"
BF16 = "hardware.bf16"
"""A fact of the machine, shown among the settings; nobody sets another in its place."""


@dataclass(frozen=True)
class Fitted:
    """One setting of a recipe on its hardware.

    Attributes:
        key: The recipe's key.
        value: The recipe's value.
        reason: Why; for one that the user set, who set it, and what the hardware would set and why.
        by_user: Whether the user set it.
    """

    key: str
    value: Any
    reason: str
    by_user: bool


@dataclass(frozen=True)
class Fit:
    """A recipe on its hardware.

    Attributes:
        hardware: The machine.
        stage: ZeRO stage; 0 needs no DeepSpeed.
        tier: What the machine sets, beside what the user did.
        settings: Every setting with its reason, the user's included.
        values: What the machine sets where the user set nothing, by dotted key.
        sources: Why, by the same keys.
    """

    hardware: Hardware
    stage: int
    tier: Tier
    settings: tuple[Fitted, ...]
    values: dict[str, Any]
    sources: dict[str, Source]

    def document(self) -> dict[str, Any]:
        """Return what the machine sets as a recipe document."""
        return nested(self.values)

    def told(self, sources: Mapping[str, Source]) -> Fit:
        """Return it with the reasons of what hardware had set before the recipe was written down.

        Args:
            sources: Who set each value, by dotted key.
        """
        known = {key: source.why for key, source in sources.items() if source.kind == "hardware"}
        settings = tuple(
            Fitted(setting.key, setting.value, known[setting.key], by_user=False)
            if setting.by_user and setting.key in known
            else setting
            for setting in self.settings
        )
        return replace(self, settings=settings)


def fit(recipe: ResolvedRecipe, family: Family, architecture: Architecture, usual: TrainingSettings) -> Fit:
    """Work out what the hardware of a recipe sets.

    Args:
        recipe: The recipe with its preset expanded, and nothing of its hardware's yet.
        family: Whose model it is.
        architecture: What the model is made of.
        usual: The batches before the user changed them: the preset's.

    Raises:
        HardwareError: It has no hardware, its batches do not multiply to the global batch, or stages differ.
    """
    settings = recipe.hardware
    if settings is None:
        raise HardwareError("The recipe names no hardware", fix="Write hardware: 3x24, for three devices of 24 GiB.")
    machine = settings.machine()
    given = given_stage(recipe, family, machine)
    stage = None if given is None else (given[0], given[1].why or f"set in {given[1]}")
    tier = choose_tier(recipe, family, architecture, machine, offload=settings.offload, stage=stage)
    batches = {choice.key: choice for choice in _batches(recipe, tier)}
    chosen = [batches.get(choice.key, choice) for choice in tier.choices]
    ours = [choice for choice in chosen if choice.key != BF16 and not _is_set(recipe, choice.key)]
    sources = {choice.key: Source("hardware", str(machine), choice.reason) for choice in ours}
    if given is not None and STAGE in sources:
        sources[STAGE] = given[1]
    by_user = given is not None and given[1].kind == "user"
    changed = by_user or any(recipe.by_user(choice.key) for choice in chosen)
    batch = usual.model_dump(include={key.partition(".")[2] for key in (ROWS, STEPS, TOTAL)})
    open_recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=batch)})
    open_stage = None if by_user else stage
    alone = tier
    if changed:
        alone = choose_tier(open_recipe, family, architecture, machine, offload=settings.offload, stage=open_stage)
    return Fit(
        hardware=machine,
        stage=tier.stage,
        tier=tier,
        settings=tuple(_shown(choice, recipe, sources.get(choice.key), alone) for choice in chosen),
        values={choice.key: choice.value for choice in ours},
        sources=sources,
    )


def _is_set(recipe: ResolvedRecipe, key: str) -> bool:
    """Return whether the user set a value; a null leaves it open."""
    return recipe.by_user(key) and value_at(recipe.document(), key) is not None


def _shown(choice: Choice, recipe: ResolvedRecipe, source: Source | None, alone: Tier) -> Fitted:
    """Return a setting as the user reads it, with what the machine would have set in place of theirs."""
    theirs = recipe.source(choice.key) if source is None else source
    if choice.key == BF16 or theirs.kind != "user":
        return Fitted(choice.key, choice.value, choice.reason, by_user=False)
    value = value_at(recipe.document(), choice.key) if source is None else choice.value
    else_, why = alone.value(choice.key), alone.reason(choice.key)
    otherwise = f"as the hardware would: {why}" if else_ == value else f"else {else_}: {why}"
    where = theirs.why or f"set in {theirs}"
    return Fitted(choice.key, value, f"{where}; {otherwise}", by_user=True)


def _batches(recipe: ResolvedRecipe, tier: Tier) -> Iterable[Choice]:
    """Return the three batch keys so that they multiply, keeping those that the user set.

    Raises:
        HardwareError: They cannot.
    """
    ranks, training = tier.hardware.ranks, recipe.training
    wanted = training.global_batch_size if _is_set(recipe, TOTAL) else None
    if wanted is not None and wanted % ranks:
        below = wanted // ranks * ranks
        raise HardwareError(
            f"{recipe.said(TOTAL)}, which does not divide by {ranks} devices ({tier.hardware})",
            fix=f"Give {f'{below} or ' if below else ''}{below + ranks}.",
        )
    if not recipe.by_user(ROWS) and not recipe.by_user(STEPS):
        return [Choice(key, tier.value(key), tier.reason(key)) for key in (ROWS, STEPS, TOTAL)]
    rows = training.per_device_train_batch_size if recipe.by_user(ROWS) else tier.value(ROWS)
    if recipe.by_user(STEPS):
        steps = training.gradient_accumulation_steps
        rows = rows if recipe.by_user(ROWS) else max((wanted or ranks * steps) // (ranks * steps), 1)
    else:
        steps = max(round(tier.value(TOTAL) / (ranks * rows)), 1)
    total = ranks * rows * steps
    if wanted is not None and wanted != total:
        made = " x ".join(
            (f"{key} {value} ({recipe.source(key)})" if recipe.by_user(key) else f"{key} {value}")
            for key, value in ((ROWS, rows), (STEPS, steps))
        )
        raise HardwareError(
            f"{recipe.said(TOTAL)}, but {ranks} devices x {made} are {total}",
            fix=f"Leave one of the three out, or set {TOTAL} to {total}.",
        )
    product = f"{ranks} x {rows} x {steps} = {total}"
    return [Choice(ROWS, rows, product), Choice(STEPS, steps, product), Choice(TOTAL, total, product)]
