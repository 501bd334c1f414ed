"""How far a number is from its reference, in units of what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """What fp32 arithmetic in another order of operations may change.

    A value is allowed ``atol + rtol * size``. Its size is its own magnitude, or that of what it was summed
    from, where the sum came out smaller: for an element of a tensor the root mean square of the vector it
    stands in (the last dimension), for a dot product with a gradient the gradient's norm. Rounding follows the
    summands: the very code that made the references misses them on another CPU when values next to zero are
    measured by their own magnitude alone.
    """

    rtol: float
    atol: float


ROUNDING_FACTOR = 8.0
"""How many root mean squares of random rounding a difference may have: a chance of 2 exp(-8**2 / 2) for each value."""


@dataclass(frozen=True)
class Finding:
    """One comparison.

    Attributes:
        what: What was compared.
        error: The largest absolute difference; NaN when there is nothing to measure.
        share: The largest difference as a share of what is allowed; above 1 is a miss.
        elementwise: As a share of the stated tolerance, with every value's own magnitude as its size. Information
            only.
        stated: The largest difference as a share of the stated tolerance. It is above 1 and not a miss only where
            rounding in fp32 explains more than that tolerance.
        note: Where the largest difference is, or what is wrong.
    """

    what: str
    error: float
    share: float
    elementwise: float
    note: str = ""
    stated: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the difference is allowed; NaN is not."""
        return self.share <= 1.0

    @property
    def is_rounding(self) -> bool:
        """Whether the difference is beyond the stated tolerance, but not beyond what rounding explains."""
        return self.passed and self.stated > 1.0


def compare_number(
    what: str,
    ours: float,
    expected: float,
    size: float,
    tolerance: Tolerance,
    spread: Callable[[], float] | None = None,
) -> Finding:
    """Compare one number that was summed from values of this ``size``.

    Args:
        what: Title.
        ours: The number.
        expected: Its reference.
        size: What it is measured by, where it is smaller itself.
        tolerance: The stated one.
        spread: Root mean square of the number under random rounding, asked only where the tolerance is missed.
    """
    error = abs(ours - expected)
    allowed = tolerance.atol + tolerance.rtol * max(abs(expected), size)
    stated = share = _ratio(error, allowed)
    if share > 1.0 and spread is not None:
        share = _ratio(error, max(allowed, ROUNDING_FACTOR * spread()))
    return Finding(what, error, share, _ratio(error, tolerance.atol + tolerance.rtol * abs(expected)), stated=stated)


def compare_tensors(
    what: str,
    ours: torch.Tensor,
    expected: torch.Tensor,
    tolerance: Tolerance,
    spread: Callable[[], torch.Tensor] | None = None,
) -> Finding:
    """Compare two tensors; those that are not floating-point must be equal.

    Args:
        what: Title.
        ours: The tensor.
        expected: Its reference.
        tolerance: The stated one.
        spread: Root mean square of its values under random rounding, of a shape that broadcasts to the tensor's;
            asked only where the tolerance is missed.
    """
    if ours.shape != expected.shape:
        return miss(what, f"shape {list(ours.shape)} instead of {list(expected.shape)}")
    if expected.numel() == 0:
        return Finding(what, 0.0, 0.0, 0.0)
    if not expected.is_floating_point():
        wrong = int((ours != expected).sum())
        return miss(what, f"{wrong} values differ") if wrong else Finding(what, 0.0, 0.0, 0.0)
    reference = expected.double()
    error = (ours.detach().double() - reference).abs()
    own = reference.abs()
    vector = reference.square().mean(-1, keepdim=True).sqrt() if reference.ndim else own
    size = torch.maximum(own, vector)
    allowed = tolerance.atol + tolerance.rtol * size
    strict = error / (tolerance.atol + tolerance.rtol * own)
    stated = share = _finite((error / allowed).max().item())
    if share > 1.0 and spread is not None:
        share = _finite((error / torch.maximum(allowed, ROUNDING_FACTOR * spread().double())).max().item())
    return Finding(what, error.max().item(), share, _finite(strict.max().item()), stated=stated)


def miss(what: str, note: str) -> Finding:
    """Return a comparison that could not even be made, which is a miss."""
    return Finding(what, math.nan, math.inf, math.inf, note, math.inf)


def agreement(what: str, note: str) -> Finding:
    """Return a comparison of things that are equal or not, and are."""
    return Finding(what, 0.0, 0.0, 0.0, note)


def worst(findings: list[Finding], what: str) -> Finding:
    """Return the finding with the largest share under a common title, noting which one it was."""
    top = max(findings, key=lambda finding: finding.share)
    strict, stated = (max(getattr(finding, key) for finding in findings) for key in ("elementwise", "stated"))
    return Finding(what, top.error, top.share, strict, " ".join(part for part in (top.what, top.note) if part), stated)


def _ratio(error: float, allowed: float) -> float:
    return _finite(error / allowed)


def _finite(value: float) -> float:
    return math.inf if math.isnan(value) else value
