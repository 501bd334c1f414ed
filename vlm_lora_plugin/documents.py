"""Nested documents: laying one over another, what differs, values by a dotted key.

A document is what YAML and JSON hold: mappings with string keys, lists, numbers, strings, booleans and null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any


def merge(
    base: Mapping[str, Any],
    over: Mapping[str, Any],
    *,
    null_removes: bool = False,
    replaces: Callable[[str, Any], bool] = lambda key, value: False,
) -> dict[str, Any]:
    """Return ``base`` with ``over`` laid over it, key by key; neither is changed.

    Args:
        base: The document below.
        over: The document above, whose values win.
        null_removes: Whether a null in ``over`` removes the key.
        replaces: Given a key and its value in ``over``, whether a mapping there stands in place of the one below,
            rather than being merged into it.

    Example:
        >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
        {'a': {'b': 3, 'c': 2}}
        >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"c": None}}, null_removes=True)
        {'a': {'b': 1}}
    """
    result = deepcopy(dict(base))
    for key, value in over.items():
        if value is None and null_removes:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            below = result.get(key)
            merged_into = below if isinstance(below, dict) and not replaces(key, value) else {}
            result[key] = merge(merged_into, value, null_removes=null_removes, replaces=replaces)
        else:
            result[key] = deepcopy(value)
    return result


def value_at(document: Any, key: str, default: Any = None) -> Any:
    """Return the value under a dotted key, or ``default`` where a step of it is missing.

    Example:
        >>> value_at({"lora": {"r": 8}}, "lora.r")
        8
    """
    for step in key.split("."):
        if not isinstance(document, Mapping) or step not in document:
            return default
        document = document[step]
    return document


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document in which each dotted key has its value.

    Example:
        >>> nested({"lora.r": 8, "seed": 1})
        {'lora': {'r': 8}, 'seed': 1}
    """
    document: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        here = document
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = value
    return document


def leaves(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every value that is not itself a mapping.

    Example:
        >>> list(leaves({"lora": {"r": 8}, "seed": 1}))
        [('lora.r', 8), ('seed', 1)]
    """
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """Return ``key: left / right`` for every place where two documents differ.

    Example:
        >>> differences({"lora": {"r": 8}, "seed": 1}, {"lora": {"r": 16}, "seed": 1})
        ['lora.r: 8 / 16']
    """
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        found = []
        for key in dict.fromkeys((*left, *right)):
            found += differences(left.get(key), right.get(key), f"{path}.{key}" if path else str(key))
        return found
    if isinstance(left, list) and isinstance(right, list):
        return differences(dict(enumerate(left)), dict(enumerate(right)), path)
    return [] if left == right else [f"{path}: {_shown(left)} / {_shown(right)}"]


def _shown(value: Any) -> str:
    """Return a value as it would stand in a recipe; of a mapping what is set in it."""
    if isinstance(value, Mapping):
        return (
            f"{{{', '.join(f'{key}: {_shown(inner)}' for key, inner in value.items() if inner not in (None, [], {}))}}}"
        )
    return str(value)
