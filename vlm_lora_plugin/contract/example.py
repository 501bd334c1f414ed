"""One training example, as every reader gives it and every processor takes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Role = Literal["system", "user", "assistant"]

IMAGE_MARK = "<image>"


@dataclass(frozen=True)
class Message:
    """One turn. In ``content`` each :data:`IMAGE_MARK` stands for the example's next image.

    Attributes:
        role: Who speaks.
        content: What is said.
        learnt: Of an answer, whether it is learnt from; None where the row does not say, which means that it is.
    """

    role: Role
    content: str
    learnt: bool | None = None

    @property
    def supervised(self) -> bool:
        """Whether the model learns to say this: answers do, unless they are marked."""
        return self.role == "assistant" and self.learnt is not False


@dataclass(frozen=True)
class Example:
    """A conversation and its images.

    Attributes:
        messages: Turns in order. There are as many image marks in them as there are images.
        images: Files (absolute, or relative to the working directory), or encoded image bytes.
        origin: Where it came from, ``data.jsonl:17``, for error messages.
        verbatim: The row is in the family's own data format, and becomes what upstream makes of it: special
            tokens inside a text count as such, and where the format says so no prompt is put around it.
        by_roles: Of a verbatim row, whether its labels are the answers whatever upstream's label mask says. Data files
            are read so, unless ``data.upstream_labels`` is true.
        passed_over: Keys of the row that change nothing, for reports: ``id``, ``messages.id``.
    """

    messages: tuple[Message, ...]
    images: tuple[Path | bytes, ...] = ()
    origin: str = "example"
    verbatim: bool = False
    by_roles: bool = field(default=False, compare=False)
    passed_over: tuple[str, ...] = field(default=(), compare=False, repr=False)
