"""What to change in a recipe so that a job fits its device, and what there is room for; each change is traced again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.errors import HardwareError, PlanError, RecipeError
from vlm_lora_plugin.planning.memory import GIB

if TYPE_CHECKING:
    from vlm_lora_plugin.job.memory_plan import MemoryPlan, MemoryPlanner
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe

ROWS = "training.per_device_train_batch_size"
STEPS = "training.gradient_accumulation_steps"
LEAST_R = 4
MOST_ROWS = 16
LEAST_SAVED = 0.02
"""Share of a device that a change must save to be worth naming."""


@dataclass(frozen=True)
class Change:
    """Values that replace a recipe's.

    Attributes:
        values: By dotted key.
        cost: What that costs, or what is gained by it.
    """

    values: Mapping[str, Any]
    cost: str

    def __str__(self) -> str:
        """Return it as it is typed."""
        return " ".join(f"--set {key}={_typed(value)}" for key, value in self.values.items())


@dataclass(frozen=True)
class Advice:
    """A change and what the job takes with it and with all changes before it.

    Attributes:
        change: The change.
        total: Bytes of one device.
        fits: Whether that fits.
    """

    change: Change
    total: int
    fits: bool

    def document(self) -> dict[str, Any]:
        """Return it as plain data; memory in GiB."""
        return {**vars(self.change), "total_gib": self.total / GIB, "fits": self.fits}


def ways_to_fit(planner: MemoryPlanner, plan: MemoryPlan) -> list[Advice]:
    """Return the changes with which a job fits, those first that cost least; the last one makes it fit, if any does.

    Args:
        planner: Traces the job.
        plan: The job as it is, which does not fit.
    """
    found: list[Advice] = []
    changed: dict[str, Any] = {}
    total = plan.worst.device.total
    least = LEAST_SAVED * (plan.worst.device.usable or 0)
    for change in _cheaper(plan.recipe):
        tried = _traced(planner, {**changed, **change.values})
        if tried is None or total - tried.worst.device.total < least:
            continue
        changed |= change.values
        total = tried.worst.device.total
        found.append(Advice(change, total, bool(tried.fits)))
        if tried.fits:
            break
    return found


def uses_of_room(planner: MemoryPlanner, plan: MemoryPlan) -> list[Advice]:
    """Return what a job that fits could have besides: checkpointing that is not needed, the most rows of a batch.

    Each is for itself, not on top of the one before.

    Args:
        planner: Traces the job.
        plan: The job as it is, which fits.
    """
    found: list[Advice] = []
    for name, on in plan.recipe.gradient_checkpointing.items():
        if on:
            change = Change({f"gradient_checkpointing.{name}": False}, f"{name} is not computed a second time")
            found += _if_it_fits(change, _traced(planner, change.values))
    rows, steps = plan.recipe.training.per_device_train_batch_size, plan.recipe.training.gradient_accumulation_steps
    best: list[Advice] = []
    while rows * 2 <= MOST_ROWS and steps % 2 == 0:
        rows, steps = rows * 2, steps // 2
        change = Change({ROWS: rows, STEPS: steps}, "fewer, larger passes in each optimizer step")
        more = _if_it_fits(change, _traced(planner, change.values))
        if not more:
            break
        best = more
    return found + best


def _cheaper(recipe: ResolvedRecipe) -> Iterator[Change]:
    if not recipe.answer_only_loss:
        yield Change({"answer_only_loss": True}, "nothing: the same loss")
    for component in recipe.architecture.repeating:
        if not recipe.gradient_checkpointing.get(component):
            cost = f"a second forward pass of the blocks of {component}"
            yield Change({f"gradient_checkpointing.{component}": True}, cost)
    rows, steps = recipe.training.per_device_train_batch_size, recipe.training.gradient_accumulation_steps
    while rows % 2 == 0:
        rows, steps = rows // 2, steps * 2
        yield Change({ROWS: rows, STEPS: steps}, "more, smaller passes in each optimizer step")
    r = recipe.lora.r
    while r // 2 >= LEAST_R:
        r //= 2
        yield Change({"lora.r": r}, "an adapter that can learn less")


def _traced(planner: MemoryPlanner, values: Mapping[str, Any]) -> MemoryPlan | None:
    """Return the plan with some changes; None where the recipe cannot have them."""
    try:
        return planner.plan(values)
    except (RecipeError, HardwareError, PlanError):
        return None


def _if_it_fits(change: Change, plan: MemoryPlan | None) -> list[Advice]:
    if plan is None or not plan.fits:
        return []
    return [Advice(change, plan.worst.device.total, fits=True)]


def _typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
