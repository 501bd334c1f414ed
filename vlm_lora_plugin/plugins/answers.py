"""Whether what a plugin answers is of the types that the contract names, all the way down."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, is_typeddict

from vlm_lora_plugin.plugins.isolation import represented

JSON = object()
"""Stands for a document as YAML and JSON hold it."""

_PLAIN = (bool, int, float, str, type(None))
_DEEPEST = 50


def problem_of(value: object, wanted: Any, path: str = "", depth: int = 0) -> str | None:
    """Return where and how a value is not what is wanted, or None where it is.

    Args:
        value: What a plugin answered.
        wanted: A class, an annotation of the contract, or :data:`JSON`. What cannot be looked into (a function's
            signature) is not.
        path: Where the value stands, ``components[0].name``.
        depth: How deep that is.

    Example:
        >>> problem_of((1, "b"), tuple[str, ...], "model_types")
        'model_types[0] is 1, not a str'
    """
    if depth > _DEEPEST:
        return f"{path} is nested too deeply"
    if wanted is Any:
        return None
    if wanted is JSON:
        return _of_document(value, path, depth)
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return _of_union(value, inner, path, depth)
    if origin is Literal:
        return None if any(value is each or value == each for each in inner) else _wrong(value, inner, path)
    if wanted is None or wanted is type(None):
        return None if value is None else _wrong(value, "null", path)
    if wanted is Callable or origin is Callable:
        return None if callable(value) else _wrong(value, "a function", path)
    if origin is type:
        return None if value in [get_args(wanted)[0]] else _wrong(value, wanted, path)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return _wrong(value, "a mapping", path)
        return _first(
            found
            for key, each in value.items()
            for found in (
                problem_of(key, inner[0], f"the key {represented(key)} of {path or 'it'}", depth + 1),
                problem_of(each, inner[1], f"{path}[{represented(key)}]", depth + 1),
            )
        )
    if origin is not None and issubclass(origin, Sequence):
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            return _wrong(value, "a tuple" if origin is tuple else "a list", path)
        return _first(problem_of(each, inner[0], f"{path}[{at}]", depth + 1) for at, each in enumerate(value))
    if is_typeddict(wanted):
        return None if isinstance(value, Mapping) else _wrong(value, "a mapping", path)
    if not isinstance(wanted, type):
        return None
    if wanted in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, wanted))):
        return _wrong(value, wanted, path)
    if wanted is not float and not isinstance(value, wanted):
        return _wrong(value, wanted, path)
    return _of_fields(value, path, depth) if is_dataclass(wanted) else None


def _of_fields(value: Any, path: str, depth: int) -> str | None:
    kind: Any = type(value)
    known = annotations_of(kind)
    return _first(
        problem_of(getattr(value, name), annotation, f"{path}.{name}" if path else name, depth + 1)
        for name, annotation in known.items()
    )


@cache
def annotations_of(kind: Any) -> dict[str, Any]:
    """Return the annotations of a dataclass that can be looked into; others need modules that are not imported."""
    namespace = {**vars(sys.modules[kind.__module__])}
    found = {}
    for field in fields(kind):
        try:
            found[field.name] = eval(field.type, namespace) if isinstance(field.type, str) else field.type
        except (NameError, TypeError):
            if str(field.type).startswith("Callable[") and str(field.type).endswith("]"):
                found[field.name] = Callable
    return found


def _of_union(value: object, choices: Sequence[Any], path: str, depth: int) -> str | None:
    problems = [problem_of(value, choice, path, depth + 1) for choice in choices]
    if None in problems:
        return None
    own = [problem for choice, problem in zip(choices, problems, strict=True) if _is_like(value, choice)]
    return own[0] if own else _wrong(value, choices, path)


def _is_like(value: object, wanted: Any) -> bool:
    kind = get_origin(wanted) or wanted
    return isinstance(kind, type) and not is_typeddict(kind) and isinstance(value, kind)


def _of_document(value: object, path: str, depth: int) -> str | None:
    if isinstance(value, _PLAIN):
        return None
    if isinstance(value, Mapping):
        return problem_of(value, Mapping[str, Any], path, depth) or _first(
            problem_of(each, JSON, f"{path}.{key}" if path else str(key), depth + 1) for key, each in value.items()
        )
    if isinstance(value, (list, tuple)):
        return _first(problem_of(each, JSON, f"{path}[{at}]", depth + 1) for at, each in enumerate(value))
    return _wrong(value, "what YAML can hold", path)


def _first(problems: Iterable[str | None]) -> str | None:
    return next((problem for problem in problems if problem is not None), None)


def _wrong(value: object, wanted: Any, path: str) -> str:
    names = wanted if isinstance(wanted, tuple) else (wanted,)
    text = " or ".join(_called(name) for name in names)
    return f"{path or 'it'} is {represented(value)}, not {text}"


def _called(wanted: Any) -> str:
    if isinstance(wanted, str):
        return wanted
    if wanted is None or wanted is type(None):
        return "null"
    return f"a {wanted.__name__}" if isinstance(wanted, type) else str(wanted)
