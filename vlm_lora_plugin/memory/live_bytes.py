"""How many bytes are alive, counted by storage while operations run on tensors without values.

A storage counts from the operation that makes it until nothing holds it: names, views, or the graph for the backward
pass. Nothing is allocated for it, so that a model of any size is traced on any machine.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode

from vlm_lora_plugin.errors import PlanError
from vlm_lora_plugin.memory.inner_memory import INNER_MEMORY

aten = torch.ops.aten

_INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
"""Operations that take a list of indices second, which may be boolean masks."""

_HAS_NO_SHAPE = (DataDependentOutputException, DynamicOutputShapeException)
_UNKNOWN = (UnsupportedFakeTensorException, UnsupportedOperatorException)


@dataclass(frozen=True)
class Use:
    """What a storage is for.

    Attributes:
        kind: ``frozen weights``, ``trainable weights``, ``gradients``, ``optimizer states``, ``inputs``, or while the
            step runs its phase: ``forward``, ``backward``, ``optimizer``.
        component: The part of the model that made it, for the last three; empty outside of all parts.
    """

    kind: str
    component: str = ""


@dataclass(frozen=True)
class Moment:
    """What is alive at one moment.

    Attributes:
        bytes: In all.
        phase: Phase of the step.
        component: The part of the model that runs, empty outside of all parts.
        operation: The operation that was last called, ``aten.mm.default``.
        uses: The bytes by what they are for.
    """

    bytes: int
    phase: str
    component: str
    operation: str
    uses: Mapping[Use, int]


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that are alive while it is active.

    Integers and truth values, such as token ids and masks, are real and are computed for real: where images stand
    and which positions have a label decides the shapes of what follows. All else is fake. It must be entered inside of
    a ``FakeTensorMode``, whose tensors are on ``device``.

    Args:
        device: Where fake tensors claim to be.

    Attributes:
        phase: Set by whoever runs the step.
        component: Set by the hooks of :mod:`~vlm_lora_plugin.memory.parts`.
        bytes: Alive now.
        peak: The moment when most was alive.
        operations: Operations called.
        inner: Operations that use memory inside, which no count of tensors sees, and how often they were called.
        curve: ``(operations so far, phase, bytes)`` at each change of direction, oldest first.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.phase = "start"
        self.component = ""
        self.bytes = 0
        self.operations = 0
        self.inner: Counter[str] = Counter()
        self.curve: list[tuple[int, str, int]] = []
        self.peak = Moment(0, "", "", "", {})
        self._last: Any = None
        self._uses: Counter[Use] = Counter()
        self._seen: dict[int, tuple[weakref.ref[torch.UntypedStorage], int, Use]] = {}
        self._peak_bytes = 0

    def uses(self) -> dict[Use, int]:
        """Return the bytes that are alive now by what they are for."""
        return {use: size for use, size in self._uses.items() if size}

    def add(self, tensor: torch.Tensor, use: Use | None = None) -> None:
        """Count a tensor's storage, once; by default for what runs now."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size, use = storage.nbytes(), use or Use(self.phase, self.component)
        self._seen[key] = (weakref.ref(storage, self._when_gone(key)), size, use)
        self._uses[use] += size
        self.bytes += size
        if self.bytes > self._peak_bytes:
            self._peak_bytes = self.bytes
            self.peak = Moment(self.bytes, self.phase, self.component, str(self._last), dict(self._uses))
        self._note()

    def reassign(self, tensor: torch.Tensor, use: Use) -> None:
        """Say what a counted tensor is for from now on."""
        key = tensor.untyped_storage()._cdata
        if key in self._seen:
            held, size, before = self._seen[key]
            self._seen[key] = (held, size, use)
            self._uses[before] -= size
            self._uses[use] += size

    def _when_gone(self, key: int) -> Callable[[object], None]:
        def gone(_: object) -> None:
            _, size, use = self._seen.pop(key)
            self._uses[use] -= size
            self.bytes -= size
            self._note()

        return gone

    def _note(self) -> None:
        """Keep one point for each operation and phase, the highest of those that one operation passes through."""
        if self.curve and self.curve[-1][0] == self.operations and self.curve[-1][1] == self.phase:
            if self.bytes > self.curve[-1][2]:
                self.curve[-1] = (self.operations, self.phase, self.bytes)
            return
        self.curve.append((self.operations, self.phase, self.bytes))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and count what it makes."""
        if func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        self.operations += 1
        self._last = func
        if func._schema.name in INNER_MEMORY:
            self.inner[func._schema.name] += 1
        out = self._call(func, args, kwargs or {})
        for tensor in _tensors((out,)):
            self.add(tensor)
        return out

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = list(_tensors((*args, *kwargs.values())))
        real = not any(isinstance(tensor, FakeTensor) for tensor in given)
        if real and (given or _makes_integers(func, kwargs)):
            with unset_fake_temporarily():
                return func(*args, **_on_cpu(kwargs))
        if func in _INDEXED:
            args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
        if not real:
            args = tuple(self._fake(value) for value in args)
            kwargs = {name: self._fake(value) for name, value in kwargs.items()}
        try:
            return func(*args, **kwargs)
        except _HAS_NO_SHAPE:
            raise PlanError(
                f"{func}: the shape of what it makes depends on values, which a trace does not have",
                why="Its memory is unknown, and so is all that follows.",
                fix="This model cannot be planned; train a few steps and read the measured peak in the summary.",
            ) from None
        except _UNKNOWN as error:
            raise PlanError(
                f"{func} cannot be traced without values: {type(error).__name__}",
                why="Its memory is unknown, and so is all that follows.",
                fix="This model cannot be planned; train a few steps and read the measured peak in the summary.",
            ) from error

    def _fake(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._fake(part) for part in value)
        if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=self.device)


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _makes_integers(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Return whether an operation that is given no tensor makes integers or truth values."""
    dtype: torch.dtype | None = kwargs.get("dtype")
    if dtype is None:
        return func.overloadpacket is aten.arange and not any(isinstance(value, float) for value in kwargs.values())
    return not (dtype.is_floating_point or dtype.is_complex)


def _on_cpu(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: torch.device("cpu") if name == "device" and value else value for name, value in kwargs.items()}


def _places(index: torch.Tensor | None) -> Iterable[torch.Tensor | None]:
    """Return a mask as the places where it is true, one tensor for each of its dimensions."""
    if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
        return (index,)
    with unset_fake_temporarily():
        return index.nonzero().unbind(1)
