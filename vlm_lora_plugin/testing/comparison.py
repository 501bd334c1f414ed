"""How far a number is from its reference, in units of what is allowed."""

from __future__ import annotations

import math
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


@dataclass(frozen=True)
class Finding:
    """One comparison.

    Attributes:
        what: What was compared.
        error: The largest absolute difference; NaN when there is nothing to measure.
        share: The largest difference as a share of what is allowed; above 1 is a miss.
        elementwise: The same with every value's own magnitude as its size. Information only.
        note: Where the largest difference is, or what is wrong.
    """

    what: str
    error: float
    share: float
    elementwise: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the difference is allowed; NaN is not."""
        return self.share <= 1.0


def compare_number(what: str, ours: float, expected: float, size: float, tolerance: Tolerance) -> Finding:
    """Compare one number that was summed from values of this ``size``."""
    error = abs(ours - expected)
    allowed = tolerance.atol + tolerance.rtol * max(abs(expected), size)
    return Finding(what, error, _ratio(error, allowed), _ratio(error, tolerance.atol + tolerance.rtol * abs(expected)))


def compare_tensors(what: str, ours: torch.Tensor, expected: torch.Tensor, tolerance: Tolerance) -> Finding:
    """Compare two tensors; those that are not floating-point must be equal."""
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
    shares = error / (tolerance.atol + tolerance.rtol * size)
    strict = error / (tolerance.atol + tolerance.rtol * own)
    return Finding(what, error.max().item(), _finite(shares.max().item()), _finite(strict.max().item()))


def miss(what: str, note: str) -> Finding:
    """Return a comparison that could not even be made, which is a miss."""
    return Finding(what, math.nan, math.inf, math.inf, note)


def agreement(what: str, note: str) -> Finding:
    """Return a comparison of things that are equal or not, and are."""
    return Finding(what, 0.0, 0.0, 0.0, note)


def worst(findings: list[Finding], what: str) -> Finding:
    """Return the finding with the largest share under a common title, noting which one it was."""
    top = max(findings, key=lambda finding: finding.share)
    strict = max(finding.elementwise for finding in findings)
    return Finding(what, top.error, top.share, strict, " ".join(part for part in (top.what, top.note) if part))


def _ratio(error: float, allowed: float) -> float:
    return _finite(error / allowed)


def _finite(value: float) -> float:
    return math.inf if math.isnan(value) else value
