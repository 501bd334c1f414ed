"""What is measured on answers to validation data: exact match, or a function of the user's."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.errors import RecipeError, TrainingError, nearest

if TYPE_CHECKING:
    from vlm_lora_plugin.contract.example import Example

EXACT_MATCH = "exact_match"


@dataclass(frozen=True)
class Metric:
    """A function of answers and the examples they belong to.

    Attributes:
        name: The value's name in logs, ``exact_match``.
        function: Returns a number, or numbers by name.
    """

    name: str
    function: Callable[[Sequence[str], Sequence[Example]], Any]

    def __call__(self, answers: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Return the values by name; several are called ``<name>_<key>``.

        Raises:
            TrainingError: The function failed, or returned something else than finite numbers.
        """
        try:
            result = self.function(answers, examples)
        except Exception as error:  # a user's function may raise anything
            raise TrainingError(
                f"The metric {self.name} failed: {type(error).__name__}: {error}",
                fix="It is called as function(answers, examples), two lists of equal length.",
            ) from error
        values = (
            {f"{self.name}_{key}": value for key, value in result.items()}
            if isinstance(result, Mapping)
            else {self.name: result}
        )
        for name, value in values.items():
            if not _is_number(value):
                raise TrainingError(
                    f"The metric {self.name} returned {value!r} for {name}",
                    fix="Return a finite number, or a mapping from names to finite numbers.",
                )
        return {name: float(value) for name, value in values.items()}


def load_metric(name: str) -> Metric:
    """Return a metric by its name: ``exact_match``, or ``package.module:function``.

    A module is looked for where Python looks, then in the working directory.

    Raises:
        RecipeError: There is no such module or function, or the module fails to import.
    """
    module_name, colon, function_name = name.partition(":")
    if not colon:
        if name != EXACT_MATCH:
            raise RecipeError(
                f"There is no metric '{name}'", fix=f"{nearest(name, [EXACT_MATCH])} Or name package.module:function."
            )
        from vlm_lora_plugin.answering.evaluation import exact_match

        return Metric(EXACT_MATCH, exact_match)
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        module = import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        raise RecipeError(
            f"The metric's module {module_name} cannot be imported: {type(error).__name__}: {error}",
            fix="Name it as in an import statement, from the working directory or an installed package.",
        ) from error
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise RecipeError(f"{module_name} has no function '{function_name}'", fix=nearest(function_name, known))
    return Metric(function_name, function)


def _is_number(value: object) -> bool:
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]  # numpy's and torch's numbers too
    except (TypeError, ValueError):
        return False
