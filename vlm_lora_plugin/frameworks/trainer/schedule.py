"""Whether transformers can make the schedule that a recipe asks for, before anything is trained."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from transformers import SchedulerType, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from vlm_lora_plugin.errors import RecipeError, nearest
from vlm_lora_plugin.frameworks.trainer.groups import ANY

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import Recipe

_STEPS, _MOST_STEPS = 100, 10_000
_GIVEN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}


def check_schedule(recipe: Recipe) -> None:
    """Make the recipe's schedule, and look at each of its rates.

    Raises:
        RecipeError: There is no such schedule, it needs other ``lr_scheduler_kwargs``, or gives no rate with these.
    """
    name, given = recipe.optimizer.lr_scheduler_type, dict(recipe.optimizer.lr_scheduler_kwargs)
    known = [kind.value for kind in SchedulerType]
    if name not in known:
        raise RecipeError(f"optimizer.lr_scheduler_type: there is no '{name}'", fix=nearest(name, known))
    function: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    takes = inspect.signature(function).parameters
    own = [key for key in takes if key not in _GIVEN]
    unknown = [key for key in given if key not in own]
    if unknown and own != ["kwargs"]:  # those go to a class of torch, which is made below
        raise RecipeError(
            f"optimizer.lr_scheduler_kwargs: the schedule {name} takes no {unknown[0]}",
            fix=f"It takes: {', '.join(own)}." if own else "Remove lr_scheduler_kwargs: it takes none.",
        )
    try:
        rates = _rates(name, given, recipe)
    except Exception as error:  # each schedule checks its arguments in its own way, or not at all
        raise RecipeError(
            f"optimizer: transformers cannot make the schedule {name} with lr_scheduler_kwargs {given}: {error}",
            fix=f"Set optimizer.lr_scheduler_kwargs; {name} takes {', '.join(own) or 'none'}.",
        ) from None
    wrong = [rate for rate in rates if not (isinstance(rate, (int, float)) and math.isfinite(rate) and rate >= 0)]
    if wrong:
        raise RecipeError(
            f"optimizer: the schedule {name} with lr_scheduler_kwargs {given} gives the factor {wrong[0]}",
            fix="A factor of the rate is a number of 0 or more.",
        )


def _rates(name: str, given: dict[str, Any], recipe: Recipe) -> list[Any]:
    """Return the factor of every step, of a hundred where the recipe does not say how many there are."""
    steps = recipe.training.max_steps if 0 < recipe.training.max_steps < _MOST_STEPS else _STEPS
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.optimizer.rate(*ANY))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedule = get_scheduler(
            name, optimizer, math.ceil(recipe.optimizer.warmup_ratio * steps), steps, scheduler_specific_kwargs=given
        )  # what the Trainer calls
        factors = getattr(schedule, "lr_lambdas", None)
        return [1.0] if factors is None else [factors[0](step) for step in range(steps + 1)]
