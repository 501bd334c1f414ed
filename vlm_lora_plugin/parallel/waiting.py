"""Which rank the others wait for, judged from what each says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from vlm_lora_plugin.errors import listed


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself.

    Attributes:
        number: Counts the beats, so that a reader needs no clock of another machine.
        host: Its machine.
        pid: Its process there.
        place: How often it has got on to another part of its work; the same on all ranks that are equally far.
        doing: That part, in words: ``step 12, backward pass``.
        seconds: How long it has been there.
        where: What its main thread is in: ``function (file:line)``.
        communicates: Whether that is a call that waits for other ranks.
        ended: It has done its work.
    """

    number: int
    host: str
    pid: int
    place: int
    doing: str
    seconds: float
    where: str
    communicates: bool
    ended: bool = False

    def document(self) -> dict[str, object]:
        """Return it as plain data, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Waiting:
    """Who is waited for.

    Attributes:
        ranks: Those that others wait for; empty where all wait for each other.
        text: What is to be said of them, one paragraph.
    """

    ranks: tuple[int, ...]
    text: str


def who_is_missing(beats: Mapping[int, Beat], silent: Mapping[int, float], patience: float) -> Waiting | None:
    """Return who the others wait for, or None where nobody has waited for long.

    Args:
        beats: Rank -> the last that it said.
        silent: Rank -> seconds since then.
        patience: Seconds after which a rank is missed.
    """
    working = {rank: beat for rank, beat in beats.items() if not beat.ended}
    lost = [rank for rank in working if silent[rank] >= patience]
    living = {rank: beat for rank, beat in working.items() if rank not in lost}
    if lost:
        text = " ".join(
            f"{_named(rank, beats[rank])} has not been heard of for {silent[rank]:.0f} s; it was last in "
            f"{beats[rank].doing}."
            for rank in lost
        )
        cause = "A process that is stopped, a machine out of reach, or code that lets no other thread of it run."
        return Waiting(tuple(lost), " ".join([text, cause, *_waiting(living)]))
    if len(living) < 2 or any(beat.seconds < patience for beat in living.values()):
        return None
    first = min(beat.place for beat in living.values())
    behind = [rank for rank, beat in living.items() if beat.place == first and not beat.communicates]
    others = {rank: beat for rank, beat in living.items() if rank not in behind}
    if not others:
        return None  # all do the same, and none waits
    if not behind:
        text = "All ranks wait for each other, each in another call or for another rank."
        return Waiting((), " ".join([text, *_waiting(living)]))
    text = " ".join(
        f"{_named(rank, beats[rank])} has been in {beats[rank].doing} for {beats[rank].seconds:.0f} s, at "
        f"{beats[rank].where}."
        for rank in behind
    )
    return Waiting(tuple(behind), " ".join([text, *_waiting(others)]))


def _named(rank: int, beat: Beat) -> str:
    return f"Rank {rank} (process {beat.pid} on {beat.host})"


def _waiting(beats: Mapping[int, Beat]) -> list[str]:
    """Return where ranks wait, those together that wait at the same place."""
    alike: dict[tuple[str, str], list[int]] = {}
    for rank, beat in beats.items():
        alike.setdefault((beat.doing, beat.where), []).append(rank)
    return [f"{_ranks(ranks)} in {doing}, at {where}." for (doing, where), ranks in alike.items()]


def _ranks(ranks: Sequence[int]) -> str:
    return f"Rank {ranks[0]} waits" if len(ranks) == 1 else f"Ranks {listed(map(str, ranks))} wait"
