"""A validation error in the user's words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from vlm_lora_plugin.errors import nearest
from vlm_lora_plugin.recipe.limits import told

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_KEY = "[key]"
"""What pydantic puts at the end of a path when a mapping's key is wrong, and not its value."""

_QUOTES = "'\""

_SHAPES = {
    "tuple_type": "needs a list, one `- ...` a line",
    "dict_type": "needs a mapping, `key: value`",
    "model_type": "needs a mapping, `key: value`",
    "model_attributes_type": "needs a mapping, `key: value`",
}


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return what is wrong with a document, key by key, with the nearest known key where one is unknown."""
    parts = []
    for problem in error.errors()[:3]:
        location = problem["loc"]
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            text = f"unknown key. {nearest(str(location[-1]), _keys_at(model, location[:-1]))}"
        elif location and location[-1] == _KEY:
            location = location[:-1]
            text = f"unknown key. {nearest(str(location[-1]), _choices(problem))}"
        elif problem["type"] == "literal_error":
            given = told(problem["input"])
            text = f"{given} is not an accepted value. {nearest(given.strip(_QUOTES), _choices(problem))}"
        elif problem["type"] in _SHAPES:
            text = f"{_SHAPES[problem['type']]}, not {told(problem['input'])}"
        where = ".".join(str(step) for step in location)
        parts.append(f"`{where}`: {text}" if where else text)
    return "; ".join(parts)


def _choices(problem: ErrorDetails) -> list[str]:
    """Return the values that a literal allows, which pydantic lists in a sentence."""
    return re.findall(r"'([^']*)'", problem.get("ctx", {}).get("expected", ""))


def _keys_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    current: Any = model
    for step in path:
        if isinstance(step, int):
            continue
        annotation = current.model_fields[step].annotation if step in getattr(current, "model_fields", {}) else None
        nested = [
            a
            for a in (annotation, *getattr(annotation, "__args__", ()))
            if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if not nested:
            return []
        current = nested[0]
    return list(current.model_fields)
