"""Who set a value of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SourceKind = Literal["user", "preset", "hardware", "default"]
"""The user, in a file, in Python or on the command line; a family's preset; the hardware; nobody."""


@dataclass(frozen=True)
class Source:
    """Who set a value.

    Attributes:
        kind: Which of the four.
        by: Their name: a file, ``the command line``, a preset, a machine; empty for a default.
        why: The reason, where there is more to say; the hardware always has one.
    """

    kind: SourceKind
    by: str = ""
    why: str = ""

    def __str__(self) -> str:
        return self.by if self.kind == "user" else f"{self.kind} {self.by}".rstrip()


DEFAULT = Source("default")
