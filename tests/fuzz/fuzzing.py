"""Tries drawn inputs: each ends as accepted or as an error of ours, within seconds, or the draw has found a fault."""

from __future__ import annotations

import random
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Generic, TypeVar

from vlm_lora_plugin.errors import VlmLoraError

MOST_SECONDS = 10
MOST_SHOWN = 600  # characters of an input or a message in a report

Input = TypeVar("Input")


class Silent(AssertionError):
    """What was accepted means something else than what was written."""


class Hang(BaseException):
    """An input took longer than :data:`MOST_SECONDS`; nothing that catches ``Exception`` may swallow it."""


@dataclass(frozen=True)
class Kind(Generic[Input]):
    """One kind of input: how it is drawn, and what a user does with it.

    Attributes:
        name: Of the input, one word: ``recipe``.
        draw: Makes one from a generator; returns what was done to it, in a few words, and the input.
        use: Uses it as a command would. Raises a VlmLoraError for what is refused, :class:`Silent` for what was
            accepted with another meaning.
    """

    name: str
    draw: Callable[[random.Random], tuple[str, Input]]
    use: Callable[[Input], None]


@dataclass
class Findings:
    """What became of the inputs of one kind.

    Attributes:
        accepted: How many, by what was done to them.
        refused: The same.
        messages: The first message to each damage that was refused.
        faults: One paragraph for each input that ended in another way.
    """

    accepted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        """How many inputs there were."""
        return self.accepted.total() + self.refused.total() + len(self.faults)

    def check(self) -> None:
        """Fail with the first faults found."""
        shown = "\n\n".join(self.faults[:5])
        assert not self.faults, f"{len(self.faults)} of {self.tried} inputs found a fault:\n\n{shown}"


def search(kind: Kind[Input], seeds: Sequence[int]) -> Findings:
    """Draw and use one input for each seed."""
    found = Findings()
    for seed in seeds:
        damage, drawn = kind.draw(random.Random(f"{kind.name} {seed}"))
        error = _error_of(kind, drawn)
        if error is None:
            found.accepted[damage] += 1
            continue
        problem = unhelpful(error) if isinstance(error, VlmLoraError) else _unexpected(error)
        if problem is None:
            found.refused[damage] += 1
            found.messages.setdefault(damage, str(error).splitlines()[0])
        else:
            found.faults.append(f"{kind.name} {seed} ({damage}): {problem}\n{ascii(drawn)[:MOST_SHOWN]}")
    return found


def _error_of(kind: Kind[Input], drawn: Input) -> BaseException | None:
    try:
        with _limited():
            kind.use(drawn)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    return None


def _unexpected(error: BaseException) -> str:
    if isinstance(error, Hang):
        return f"no answer within {MOST_SECONDS} s"
    shown = "".join(traceback.format_exception(error)[-4:])[-2 * MOST_SHOWN :]
    return f"{type(error).__name__}\n{shown!a}".replace("\\n", "\n")


def unhelpful(error: VlmLoraError) -> str | None:
    """Return what is wrong with a message that a terminal shows, None where nothing is."""
    text = str(error)
    shown = ascii(text[:MOST_SHOWN])
    if len(text) > 4000:
        return f"the message has {len(text)} characters: {shown}"
    unsafe = next((letter for letter in text if (not letter.isprintable() and letter != "\n")), None)
    if unsafe is not None:
        return f"the message holds {unsafe!r}: {shown}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"the message cannot be encoded: {shown}"
    return None


@contextmanager
def _limited() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
