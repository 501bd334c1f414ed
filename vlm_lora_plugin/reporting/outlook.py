"""What a run is about to do, in one line; and when it is over, why its loss did not move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import Recipe

MOVED = 0.01
"""Share of the first loss by which the last must be lower for the loss to have moved."""

_LOW = 0.05  # nats per token: hardly anything is left to learn
_FEW = 10  # steps
_SMALL = 1e-4  # sum of a run's rates below which weights hardly change


@dataclass(frozen=True)
class Outlook:
    """How long a run is and in what batches, as the Trainer counts it.

    Attributes:
        rows: Of the training data.
        steps: Optimizer steps of the whole run.
        per_device: Rows of one forward pass of one process.
        accumulation: Forward passes in one step.
        ranks: Processes.
        epochs: Times that every row is seen.
        done: Steps done by an earlier part of the same job.
    """

    rows: int
    steps: int
    per_device: int
    accumulation: int
    ranks: int
    epochs: float
    done: int = 0

    @classmethod
    def of(cls, recipe: Recipe, rows: int, ranks: int, done: int = 0) -> Outlook:
        """Return that of a recipe on some data.

        Args:
            recipe: The resolved recipe.
            rows: Of the training data.
            ranks: Processes of the job.
            done: Steps done already.
        """
        training = recipe.training
        per_device, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
        batches = math.ceil(math.ceil(rows / per_device) / ranks)  # of one process; the last ones are filled up
        of_epoch = max(math.ceil(batches / accumulation), 1)
        steps = training.max_steps if training.max_steps > 0 else math.ceil(of_epoch * training.num_train_epochs)
        epochs = steps / of_epoch if training.max_steps > 0 else training.num_train_epochs
        return cls(rows, steps, per_device, accumulation, ranks, epochs, done)

    def __str__(self) -> str:
        """Return it in words."""
        batch = f"{self.per_device * self.accumulation * self.ranks:,} ({self.per_device} per device x "
        done = f", {self.done:,} of them done" if self.done else ""
        return (
            f"{_many(self.rows, 'row')}, {_many(self.steps, 'step')}{done}, batch {batch}"
            f"{self.accumulation} accumulated x {_many(self.ranks, 'rank')}), {self.epochs:.4g} epoch"
            f"{'' if self.epochs == 1 else 's'}"
        )


def why_not_moved(log: Sequence[Mapping[str, Any]], recipe: Recipe, steps: int) -> str:
    """Return that a run's loss did not move, and why as far as its log shows; empty where it fell.

    Args:
        log: Lines of the run's log, see :class:`vlm_lora_plugin.reporting.log.JsonlLog`.
        recipe: The resolved recipe.
        steps: Optimizer steps done.
    """
    lines = [line for line in log if line.get("loss") is not None]
    rates = [max(line["learning_rate"].values(), default=0.0) for line in lines if line.get("learning_rate")]
    if not lines:
        return ""
    share = max(len(lines) // 10, 1)
    first, last = (sum(line["loss"] for line in part) / share for part in (lines[:share], lines[-share:]))
    idle = bool(rates) and max(rates) == 0
    if not idle and (len(lines) < 2 or first - last > MOVED * first):
        return ""
    how = "rose" if last > first * (1 + MOVED) else "did not move"
    text = f"the loss {how}: {first:.4f} -> {last:.4f}. " if len(lines) > 1 else "nothing was learnt. "
    return text + " ".join(_causes(lines, rates, recipe, steps, first))


def _causes(
    lines: Sequence[Mapping[str, Any]], rates: Sequence[float], recipe: Recipe, steps: int, first: float
) -> list[str]:
    warmup = math.ceil(steps * recipe.optimizer.warmup_ratio)
    found = []
    if rates and max(rates) == 0:
        cause = f"the warm-up begins with it, and there were {_many(steps, 'step')}" if warmup else "raise it"
        found.append(f"The learning rate was 0 in every logged step: {cause}.")
    elif steps <= warmup:
        found.append(
            f"All {steps} steps lie in the warm-up (optimizer.warmup_ratio {recipe.optimizer.warmup_ratio:g})."
        )
    elif steps < _FEW:
        began = f", of which the warm-up takes {warmup}" if warmup else ""
        found.append(f"These are only {_many(steps, 'step')}{began}: raise training.num_train_epochs or max_steps.")
    total = sum(rates) * steps / max(len(rates), 1)
    if 0 < total < _SMALL and steps >= _FEW:
        found.append(f"The learning rates of all steps add up to {total:.1e}: raise optimizer.learning_rate.")
    norms = [line["grad_norm"] for line in lines if line.get("grad_norm") is not None]
    skipped = sum("grad_norm" in line and line["grad_norm"] is None for line in lines)
    if norms and max(norms) == 0:
        found.append("Every gradient was 0.")
    if skipped:
        found.append(
            f"In {skipped} of {len(lines)} logged steps the gradient was not finite, and the step was skipped."
        )
    limit = recipe.optimizer.max_grad_norm
    if norms and limit and sorted(norms)[len(norms) // 2] > 100 * limit:
        found.append(f"Gradients were scaled down more than a hundredfold to optimizer.max_grad_norm {limit:g}.")
    if first < _LOW:
        found.append("It was low from the start: the model knows these answers.")
    return found or [
        "Its log shows no cause: try a higher optimizer.learning_rate, train more, or look at the rows with "
        "vlm-lora data-check."
    ]


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
