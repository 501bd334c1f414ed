"""Methods of one model wrapped by several patches, which may be taken off again in any order.

A wrapper is given the model with each call, so that a deep copy computes with its own weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MethodType
from typing import Any

from torch import nn

from vlm_lora_plugin.patches.rebinding import rebinding

Around = Callable[..., Any]
"""``around(module, call, *args, **kwargs)``: what a method does instead, ``call`` being what it did before."""

_CHAINS = "_vlm_lora_wrapped"


@dataclass(eq=False)
class _Chain:
    """What is around one method of one module.

    Attributes:
        before: What stood in the module itself, past its class; None where nothing did.
        arounds: The wrappers, the innermost first.
    """

    before: Callable[..., Any] | None
    arounds: list[Around] = field(default_factory=list)


def wrap_method(module: nn.Module, name: str, around: Around) -> Callable[[], None]:
    """Wrap a method of one module, around what has wrapped it already.

    PEFT calls a model's ``forward`` directly, past its hooks; this is what such a call meets too.

    Args:
        module: The module; its class stays as it is.
        name: ``forward`` or ``generate``.
        around: The wrapper.

    Returns:
        What takes exactly this wrapper off. With the last one the module is as it was.
    """
    chains: dict[str, _Chain] = vars(module).setdefault(_CHAINS, {})
    if name not in chains:
        chains[name] = _Chain(vars(module).get(name))
        vars(module)[name] = MethodType(_calling(getattr(module, name), name), module)
    around = rebinding(around, module)
    chains[name].arounds.append(around)
    return partial(_unwrap, module, name, around)


def undo_all(steps: Sequence[Callable[[], None]]) -> None:
    """Take several changes back, the last one first."""
    for step in reversed(steps):
        step()


def _unwrap(module: nn.Module, name: str, around: Around) -> None:
    chains: dict[str, _Chain] = vars(module)[_CHAINS]
    chain = chains[name]
    chain.arounds.remove(around)
    if chain.arounds:
        return
    del chains[name]
    if not chains:
        del vars(module)[_CHAINS]
    del vars(module)[name]
    if chain.before is not None:
        vars(module)[name] = chain.before


def _calling(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a function of a module that calls its chain, with the signature that the method had."""

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        chain: _Chain = vars(self)[_CHAINS][name]
        inner = chain.before if chain.before is not None else getattr(type(self), name).__get__(self)
        for around in chain.arounds:
            inner = partial(around, self, inner)
        return inner(*args, **kwargs)

    call.__name__, call.__doc__ = name, original.__doc__
    signature = inspect.signature(original)
    myself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    whole = signature.replace(parameters=[myself, *signature.parameters.values()])
    call.__signature__ = whole  # type: ignore[attr-defined]  # inspect reads it
    return call
