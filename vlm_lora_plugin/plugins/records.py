"""What became of each installed entry point."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterRecord:
    """An entry point of the adapter or policy group and what became of it.

    Attributes:
        name: The entry point's name; an adapter's is its family's.
        distribution: Name and version of the distribution that ships it.
        value: The entry point's target, ``package.module``.
        error: The traceback's text if loading failed, else None.
        builtin: Whether it ships with this package.
        policy: Whether it is a policy, which wraps every adapter's answers, and no adapter.
    """

    name: str
    distribution: str
    value: str
    error: str | None = None
    builtin: bool = False
    policy: bool = False
