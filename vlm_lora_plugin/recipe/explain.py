"""A validation error in the user's words."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from vlm_lora_plugin.errors import nearest


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return what is wrong with a document, key by key, with the nearest known key where one is unknown."""
    parts = []
    for problem in error.errors()[:3]:
        where = ".".join(str(step) for step in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            text = f"unknown key. {nearest(str(problem['loc'][-1]), _keys_at(model, problem['loc'][:-1]))}"
        parts.append(f"`{where}`: {text}" if where else text)
    return "; ".join(parts)


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
