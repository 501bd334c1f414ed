"""Functions that a family plugin names as ``"module:function"``, so that its description imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

from vlm_lora_plugin.errors import AdapterError

P = ParamSpec("P")
R = TypeVar("R")

_FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_reference(value: object) -> bool:
    """Return whether a value is a function, or a string of the form ``module:function``."""
    return callable(value) or (isinstance(value, str) and _FORM.fullmatch(value) is not None)


def function_of(reference: Callable[P, R] | str, what: str) -> Callable[P, R]:
    """Return the function that a reference stands for, importing its module if it is a string.

    Args:
        reference: The function, or ``"module:function"``.
        what: Whose it is, the beginning of a sentence.

    Raises:
        AdapterError: The module cannot be imported, or holds no such function.
    """
    if not isinstance(reference, str):
        return reference
    module, _, path = reference.partition(":")
    try:
        found: Any = import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except Exception as error:  # a module may raise anything when it is imported
        raise AdapterError(
            f"{what} is given as '{reference}', which cannot be imported: {type(error).__name__}: {error}",
            fix="Its author must correct the name, or what the module imports.",
        ) from error
    if not callable(found):
        raise AdapterError(
            f"{what} is given as '{reference}', which is a {type(found).__name__}, not a function",
            fix="Its author must give the name of a function.",
        )
    function: Callable[P, R] = found
    return function
