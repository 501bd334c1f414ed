"""One training example, as every reader gives it and every processor takes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["system", "user", "assistant"]

IMAGE_MARK = "<image>"


@dataclass(frozen=True)
class Message:
    """One turn. In ``content`` each :data:`IMAGE_MARK` stands for the example's next image."""

    role: Role
    content: str


@dataclass(frozen=True)
class Example:
    """A conversation and its images.

    Attributes:
        messages: Turns in order. There are as many image marks in them as there are images.
        images: Files (absolute, or relative to the working directory), or encoded image bytes.
        origin: Where it came from, ``data.jsonl:17``, for error messages.
        verbatim: The row is in the family's own data format, and becomes what upstream makes of it: special
            tokens inside a text count as such, and where the format says so no prompt is put around it.
    """

    messages: tuple[Message, ...]
    images: tuple[Path | bytes, ...] = ()
    origin: str = "example"
    verbatim: bool = False
