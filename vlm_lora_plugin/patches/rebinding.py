"""Functions that patches put into a model, made so that a deep copy's compute with the copy.

``copy.deepcopy`` takes a function for a constant. One that closes over a model, a layer or its bound method would make
the copy compute with the original's weights, and taken back in the copy it would change the original.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial, update_wrapper
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

_PLAIN = (str, bytes, int, float, complex, type(None), type, ModuleType, torch.dtype, torch.device)
"""What may be shared with a copy."""

_Memo = dict[int, Any]


class Rebinding:
    """A function whose closure and defaults are, in a deep copy, the copy's.

    Args:
        function: A function, method or partial.
        home: The model that it works in.
    """

    def __init__(self, function: Callable[..., Any], home: nn.Module) -> None:
        update_wrapper(self, function)  # for inspect.signature
        self.function, self.home = function, home

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)

    def __deepcopy__(self, memo: _Memo) -> Rebinding:
        """Return it for the copy that is being made, or, with no copy of the model, for one made now."""
        instances = {id(vars(module)): module for module in self.home.modules()}
        return Rebinding(_copied(self.function, memo, instances), copy.deepcopy(self.home, memo))


def rebinding(function: Callable[..., Any], home: nn.Module) -> Callable[..., Any]:
    """Return what a patch may put into a model in place of a function: the same one where a copy may share it."""
    return Rebinding(function, home) if _shares(function) else function


def functions_of(model: nn.Module) -> Iterator[tuple[dict[Any, Any], Any]]:
    """Yield the dictionary and key of every function that stands in a model's modules: their hooks and attributes."""
    for module in model.modules():
        own = vars(module)
        hooks = [value for key, value in own.items() if isinstance(value, dict) and key.endswith("hooks")]
        for holder in (own, *hooks):
            for key, value in holder.items():
                if isinstance(value, (FunctionType, MethodType, BuiltinMethodType, partial)):
                    yield holder, key


def _shares(value: Any, seen: frozenset[int] = frozenset()) -> bool:
    """Return whether ``copy.deepcopy`` would leave in a function what may be the model's."""
    if id(value) in seen:
        return False
    inside = partial(_shares, seen=seen | {id(value)})
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        state = [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return any(inside(each) if isinstance(each, FunctionType) else not isinstance(each, _PLAIN) for each in state)
    if isinstance(value, MethodType):
        return inside(value.__func__)
    if isinstance(value, BuiltinMethodType):
        return not isinstance(value.__self__, _PLAIN)
    if isinstance(value, partial):
        return any(map(inside, (value.func, *value.args, *value.keywords.values())))
    return any(map(inside, value.values() if isinstance(value, dict) else value)) if _is_container(value) else False


def _is_container(value: Any) -> bool:
    return type(value) in (list, tuple, dict)


def _copied(value: Any, memo: _Memo, instances: dict[int, nn.Module]) -> Any:
    """Return a deep copy that goes on inside functions.

    Args:
        value: Anything.
        memo: What was copied already, as ``copy.deepcopy`` keeps it.
        instances: The model's modules by the identity of their ``vars``, which no memo knows.
    """
    if id(value) in memo:
        return memo[id(value)]
    again = partial(_copied, memo=memo, instances=instances)
    if isinstance(value, FunctionType):
        return _copied_function(value, memo, again) if _shares(value) else value
    if isinstance(value, MethodType):
        return MethodType(again(value.__func__), again(value.__self__))
    if isinstance(value, BuiltinMethodType):
        return value if isinstance(value.__self__, _PLAIN) else getattr(again(value.__self__), value.__name__)
    if isinstance(value, partial):
        keywords = {key: again(each) for key, each in value.keywords.items()}
        return type(value)(again(value.func), *map(again, value.args), **keywords)
    if id(value) in instances:
        return vars(again(instances[id(value)]))
    if isinstance(value, ModuleType):
        return value
    if not _is_container(value):
        return copy.deepcopy(value, memo)
    twin = {key: again(each) for key, each in value.items()} if type(value) is dict else type(value)(map(again, value))
    return memo.setdefault(id(value), twin)


def _copied_function(function: FunctionType, memo: _Memo, again: Callable[[Any], Any]) -> FunctionType:
    """Return a function with the copy's cells; cells that functions shared stay shared."""
    old = function.__closure__ or ()
    new = tuple(memo.setdefault(id(cell), CellType()) for cell in old)
    twin = FunctionType(function.__code__, function.__globals__, function.__name__, None, new or None)
    memo[id(function)] = twin
    for before, after in zip(old, new, strict=True):
        if _is_filled(before) and not _is_filled(after):
            after.cell_contents = again(before.cell_contents)
    twin.__defaults__, twin.__kwdefaults__ = again(function.__defaults__), again(function.__kwdefaults__)
    twin.__qualname__, twin.__doc__ = function.__qualname__, function.__doc__
    twin.__dict__.update(function.__dict__)
    return twin


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  reading an empty one raises
    except ValueError:
        return False
    return True
