"""Checks of what a family plugin says about a model, against the model itself."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from vlm_lora_plugin.contract import Architecture
from vlm_lora_plugin.errors import AdapterError, RecipeError, listed
from vlm_lora_plugin.patterns import Matcher
from vlm_lora_plugin.plugins.answers import problem_of
from vlm_lora_plugin.vocabulary import COMPONENT_NAMES

if TYPE_CHECKING:
    from torch import nn


_FIX = "See docs/reference/hooks.md for what Family.architecture returns."


def check_architecture(answer: object, model: nn.Module, who: str) -> Architecture:
    """Return an answer of ``Family.architecture`` if it describes the model.

    Args:
        answer: What the family plugin said.
        model: The model that it said it about; only names are read.
        who: The plugin, as messages call it.

    Raises:
        AdapterError: It is of another type, names a component twice, or names what the model does not have.
    """
    problem = problem_of(answer, Architecture) if isinstance(answer, Architecture) else None
    if problem is not None:
        raise AdapterError(f"The architecture that {who} answers does not fit: {problem}", fix=_FIX)
    if not isinstance(answer, Architecture):
        raise AdapterError(
            f"The architecture that {who} answers is a {type(answer).__name__}, not an Architecture", fix=_FIX
        )
    _check_patterns(answer, who)
    twice = [name for name, count in Counter(answer.component_names).items() if count > 1]
    if twice or not answer.components:
        problem = f"names {listed(twice)} twice" if twice else "has no component"
        raise AdapterError(
            f"The architecture that {who} answers {problem}",
            fix=f"Give each part of the model once, as a Component named {', '.join(COMPONENT_NAMES)}.",
        )
    modules = {name for name, _ in model.named_modules()}
    known = modules.union(name for name, _ in model.named_parameters(remove_duplicate=False))
    missing = [
        *(f"{prefix} ({part.name})" for part in answer.components for prefix in part.prefixes if prefix not in known),
        *(f"{name} ({role})" for role, name in (("trunk", answer.trunk), ("head", answer.head)) if name not in modules),
    ]
    if missing:
        raise AdapterError(
            f"{who} names parts that this {type(model).__name__} does not have: {listed(missing)}",
            why="Rules for them would match nothing, and what they were meant for would be left out.",
            fix="Its author must answer the architecture of the model that Family.architecture is given.",
        )
    return answer


def _check_patterns(answer: Architecture, who: str) -> None:
    parts = (pattern for part in answer.components for pattern in (part.builtin_lora, part.blocks))
    for pattern in (*parts, *answer.fixed_tables, *answer.image_only):
        if pattern is not None:
            try:
                Matcher(pattern)
            except RecipeError as error:
                raise AdapterError(f"The architecture that {who} answers: {error.what}", fix=error.fix) from None
