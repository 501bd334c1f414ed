"""How a check of the contract kit ends where it does not just return."""

from __future__ import annotations


class BrokenPromise(AssertionError):
    """The plugin, its model or its processor does not do what the contract says."""


class NotApplicable(Exception):
    """The promise cannot be checked here; the message says why."""


def require(kept: object, what: str) -> None:
    """Raise where a promise is not kept.

    Args:
        kept: Whether it is.
        what: What was found instead, and on which names.

    Raises:
        BrokenPromise: It is not.
    """
    if not kept:
        raise BrokenPromise(what)
