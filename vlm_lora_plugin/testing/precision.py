"""Running a model in fp64, and measuring how far fp32's rounding may carry its results.

A model's code asks for fp32 in places (norms, softmax, positions), which widens in training and would narrow here;
:class:`DoublePrecision` turns these requests into fp64, without a change to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

UNIT_ROUNDOFF = 2.0**-24
"""The largest relative error of one fp32 operation (IEEE 754)."""

_PERIOD = 65_537  # a prime, so that no tensor's rows see the same noise in the same places
_LARGEST = torch.finfo(torch.float64).max
_CONTRACTIONS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")  # and fused attention
_FUSED = "scaled_dot_product"
_EXACT = ("clone", "_to_copy", "cat", "stack", "index", "embedding", "zeros_like", "ones_like", "masked_fill")


class DoublePrecision(TorchFunctionMode):
    """While entered, whatever asks for fp32 gets fp64.

    Attributes:
        narrowed: Functions that made something narrower of an fp64 tensor all the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.narrowed: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call ``func`` with fp64 in place of fp32 among its arguments."""
        given = {name: _wider(value) for name, value in (kwargs or {}).items()}
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        result = func(*map(_wider, args), **given)
        if _is_narrow(result) and any(_is_double(value) for value in (*args, *given.values())):
            self.narrowed.add(getattr(func, "__name__", str(func)))
        return result


@contextmanager
def double_precision() -> Iterator[DoublePrecision]:
    """Run the ``with`` block in fp64: requests for fp32, and tensors of the default dtype."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with DoublePrecision() as mode:
            yield mode
    finally:
        torch.set_default_dtype(default)


def in_double(value: Any) -> Any:
    """Return inputs of a model with every floating-point tensor in fp64; lists and tuples are looked into."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: in_double(item) for name, item in value.items()}
    return type(value)(map(in_double, value)) if isinstance(value, (list, tuple)) else value


class RandomRounding(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """While entered, fp64 arithmetic errs at random as fp32's does, forward and backward (Monte Carlo arithmetic).

    The result of each operation is off by up to :data:`UNIT_ROUNDOFF`, the summands of a product of matrices by up
    to its square root of n times that for sums of n, which is how rounding errors of a long sum grow (Higham and
    Mary, A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41, 2019).

    Args:
        seed: Of the errors; they are the same on every processor.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed(seed)
        self._noise = torch.rand(2 * _PERIOD, generator=self._generator, dtype=torch.float64) * 2 - 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call ``func`` and round."""
        name = func._schema.name.partition("::")[2]
        if name in _CONTRACTIONS or _FUSED in name:
            args = tuple(self._summand(value) for value in args)
        result = func(*args, **(kwargs or {}))
        if name in _EXACT or any(returned.alias_info is not None for returned in func._schema.returns):
            return result
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if _is_double(tensor):
                self._round(tensor, UNIT_ROUNDOFF)
        return result

    def _summand(self, value: Any) -> Any:
        if not _is_double(value) or not value.numel():
            return value
        return self._round(value.clone(), UNIT_ROUNDOFF * max(value.shape[-1:] or (1,)) ** 0.5)

    def _round(self, tensor: torch.Tensor, size: float) -> torch.Tensor:
        start = int(torch.randint(_PERIOD, (), generator=self._generator))
        factors = 1 + size * self._noise[start : start + _PERIOD]
        flat = tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1)
        for begin in range(0, flat.numel(), _PERIOD):
            part = flat[begin : begin + _PERIOD]
            part.mul_(factors[: part.numel()]).clamp_(-_LARGEST, _LARGEST)  # masks hold the largest number itself
        if not tensor.is_contiguous():
            tensor.copy_(flat.view(tensor.shape))
        return tensor


def _wider(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _is_double(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float64


def _is_narrow(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
