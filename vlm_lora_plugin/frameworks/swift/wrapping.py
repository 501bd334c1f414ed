"""Replacing one of Swift's functions once, by one that knows the original."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

_MARK = "_vlm_lora_wrapped"


def wrap(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace ``owner.name`` by ``make(original)``, keeping its signature; a second call changes nothing.

    Args:
        owner: A class or module.
        name: The function's name.
        make: Given the original (for a class method the bound one), returns what takes its place.
    """
    found = vars(owner)[name]
    if getattr(found, _MARK, False) or getattr(getattr(found, "__func__", None), _MARK, False):
        return
    if isinstance(found, classmethod):
        original = getattr(owner, name)
        inner = make(original)

        def class_method(cls: type, *args: Any, **kwargs: Any) -> Any:
            return inner(*args, **kwargs)

        replacement = wraps(found.__func__)(class_method)
        setattr(replacement, _MARK, True)
        setattr(owner, name, classmethod(replacement))
        return
    replacement = wraps(found)(make(found))
    setattr(replacement, _MARK, True)
    setattr(owner, name, replacement)
