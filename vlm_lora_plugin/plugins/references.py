"""Functions that a family plugin names as ``"module:function"``, so that its description imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from typing import Any, Generic, ParamSpec, TypeVar

from vlm_lora_plugin.contract import Example, Family, MixturePart
from vlm_lora_plugin.errors import AdapterError
from vlm_lora_plugin.plugins.answers import problem_of
from vlm_lora_plugin.plugins.calling import attributed
from vlm_lora_plugin.plugins.isolation import guarded, represented, told

P = ParamSpec("P")
R = TypeVar("R")

_FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


_ANSWERS: Mapping[str, Any] = {
    "recognises": bool,
    "advise": Sequence[str],
    "parse_record": Example | None,
    "read_mixture": Sequence[MixturePart] | None,
    "write_tiny_model": Mapping[str, Any] | None,
}
"""What the functions of a description answer, where that can be looked into without torch."""

_NEEDED: Mapping[str, tuple[str, ...]] = {
    "Family": ("recognises", "architecture", "load_model", "load_processor"),
    "DataFormats": (),
    "TestSupport": (),
}
_OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "Family": ("advise",),
    "DataFormats": ("parse_record", "read_mixture"),
    "TestSupport": ("write_tiny_model", "read_golden_case"),
}


def check_functions(family: Family, who: str) -> None:
    """Refuse a description whose functions are neither functions nor ``"module:function"``; imports nothing.

    Args:
        family: The description.
        who: The plugin, as messages call it.

    Raises:
        AdapterError: One is something else.
    """
    for group in (family, family.data_formats, family.test_support):
        kind = type(group).__name__
        for name in (*_NEEDED.get(kind, ()), *_OPTIONAL.get(kind, ())):
            value = getattr(group, name)
            left_out = value is None and name in _OPTIONAL[kind]
            if not (left_out or callable(value) or (isinstance(value, str) and _FORM.fullmatch(value))):
                raise AdapterError(
                    f"{who} gives {kind}.{name} as {represented(value)}",
                    fix='Give a function, or a string of the form "package.module:function".',
                )


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
        found: Any = guarded(lambda: attrgetter(path)(import_module(module)))
    except Exception as error:  # a module may raise anything when it is imported
        raise AdapterError(
            f"{what} is given as '{reference}', which cannot be imported: {told(error)}",
            fix="Its author must correct the name, or what the module imports.",
        ) from error
    if not callable(found):
        raise AdapterError(
            f"{what} is given as '{reference}', which is a {type(found).__name__}, not a function",
            fix="Its author must give the name of a function.",
        )
    function: Callable[P, R] = found
    return function


@dataclass(frozen=True)
class PluginFunction(Generic[P, R]):
    """A function of a family plugin, imported when it is first called; it can be pickled if the reference can.

    Attributes:
        reference: The function, or ``"module:function"``.
        what: Whose it is, the beginning of a sentence.
        name: The field of the description that holds it.
    """

    reference: Callable[P, R] | str
    what: str
    name: str = ""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it.

        Raises:
            AdapterError: It cannot be imported, raised something unexpected, or its answer is not what the contract
                names, all the way down. A VlmLoraError is an answer to the user
                and passes as it is.
        """
        found = function_of(self.reference, self.what)
        answer = attributed(lambda: found(*args, **kwargs), self.what)
        problem = problem_of(answer, _ANSWERS.get(self.name, Any))
        if problem is not None:
            raise AdapterError(
                f"{self.what} returned what does not fit: {problem}",
                fix="See docs/reference/hooks.md for what each function of Family returns.",
            )
        return answer
