"""Two recorded runs, compared bit by bit, up to the first difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

from vlm_lora_plugin.errors import listed
from vlm_lora_plugin.parity.difference_causes import CAUSES, Kind
from vlm_lora_plugin.parity.reading import Event, Run

STEP: Event = {"event": "step"}


@dataclass(frozen=True)
class Difference:
    """Where two runs part first.

    Attributes:
        kind: In what.
        where: The step, forward pass, process or names.
        left: What the first run has there, in words or digits.
        right: What the second run has there.
        rows: Digests of the rows' ids on both sides, where they differ; names once they are known.
    """

    kind: Kind
    where: str
    left: str
    right: str
    rows: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    @property
    def cause(self) -> str:
        """What is likely behind it."""
        return CAUSES[self.kind]


def compare(left: Run, right: Run) -> Difference | None:
    """Return the first difference of two runs, in the order in which one brings about the next; None when equal.

    Nothing is tolerated: numbers are compared with all their bits, tensors by digests of their bytes.
    """
    return next(_differences(left, right), None)


def _differences(left: Run, right: Run) -> Iterator[Difference]:
    if len(left.events) != len(right.events) or left.start["processes"] != right.start["processes"]:
        yield Difference(Kind.processes, "", str(left.start["processes"]), str(right.start["processes"]))
        return
    one, other = left.start, right.start
    yield from _names(one["trainables"], other["trainables"])
    if one["dtype"] != other["dtype"]:
        yield Difference(Kind.dtype, "", one["dtype"], other["dtype"])
    if one["step"] != other["step"]:
        yield Difference(Kind.length, "steps done at the start", str(one["step"]), str(other["step"]))
    yield from _digests(Kind.initial, "", one["weights"], other["weights"])
    for rank, (ours, theirs) in enumerate(zip(left.events, right.events, strict=True)):
        where = f", process {rank}" if len(left.events) > 1 else ""
        if rank:
            yield from _digests(Kind.initial, where.removeprefix(", "), ours[0]["weights"], theirs[0]["weights"])
    known = (_all_ids(left), _all_ids(right))
    every = sorted({event["step"] for events in (*left.events, *right.events) for event in events})
    for step in every:
        found = []
        for rank, (ours, theirs) in enumerate(zip(left.events, right.events, strict=True)):
            where = f", process {rank}" if len(left.events) > 1 else ""
            found += list(islice(_step(step, where, _at(ours, step), _at(theirs, step), known), 1))
        # What goes wrong in one process shows later in the gradients of all.
        yield from (difference for _, difference in sorted(found, key=lambda pair: pair[0]))
    yield from _digests(Kind.saved, "", left.saved, right.saved)


def _at(events: Sequence[Event], step: int) -> list[Event]:
    return [event for event in events if event["step"] == step and event["event"] != "start"]


def _all_ids(run: Run) -> set[str]:
    return {row for events in run.events for event in events if event["event"] == "batch" for row in event["ids"]}


def _step(
    step: int, where: str, left: list[Event], right: list[Event], known: tuple[set[str], set[str]]
) -> Iterator[tuple[tuple[bool, int], Difference]]:
    """Yield differences between two optimizer steps, each with its rank.

    What goes into the forward passes comes first: one of them scales the loss of all.
    """
    counts = [
        Counter(_what(event) for event in events if event["event"] in ("batch", "step")) for events in (left, right)
    ]
    if counts[0] != counts[1] and all(_what(STEP) in count for count in counts):
        one, other = (", ".join(f"{number} x {name}" for name, number in count.items()) for count in counts)
        yield (False, 0), Difference(Kind.micro_batches, f"step {step + 1}{where}", one, other)
        return
    for what_goes_in in (True, False):
        passes: Counter[str] = Counter()
        random_alike = True
        for position, (ours, theirs) in enumerate(zip_longest(left, right)):
            if ours is None or theirs is None or _what(ours) != _what(theirs):
                if not what_goes_in:
                    difference = Difference(Kind.length, f"step {step + 1}{where}", _what(ours), _what(theirs))
                    yield (True, position), difference
                break
            found: Iterator[Difference] = iter(())
            if ours["event"] == "batch":
                passes[ours["mode"]] += 1
                place = f"step {step + 1}" if ours["mode"] == "train" else f"evaluation after step {step}"
                random_alike &= ours["random"] == theirs["random"] or ours["mode"] == "eval"
                place = f"{place}, forward pass {passes[ours['mode']]}{where}"
                found = _inputs(place, ours, theirs, known) if what_goes_in else _loss(place, ours, theirs)
            elif ours["event"] == "step" and not what_goes_in:
                found = _optimizer(f"step {step + 1}{where}", ours, theirs, random_alike)
            elif ours["event"] == "log" and not what_goes_in:
                found = _log(f"after step {step}{where}", ours, theirs)
            yield from (((not what_goes_in, position), difference) for difference in found)


def _optimizer(where: str, one: Event, other: Event, random_alike: bool) -> Iterator[Difference]:
    if one["groups"] != other["groups"]:
        yield Difference(Kind.rates, where, *_first_unequal(one["groups"], other["groups"]))
    # While LoRA's second factor is zero, dropout shows in gradients alone.
    kind = Kind.gradients if random_alike else Kind.random
    yield from _digests(kind, where, one["gradients"], other["gradients"])
    yield from _digests(Kind.weights, where, one["weights"], other["weights"])


def _inputs(where: str, one: Event, other: Event, known: tuple[set[str], set[str]]) -> Iterator[Difference]:
    if one["ids"] != other["ids"]:
        same_rows = set(one["ids"]) <= known[1] and set(other["ids"]) <= known[0]
        rows = (tuple(one["ids"]), tuple(other["ids"]))
        kind = Kind.order if same_rows else Kind.ids
        yield Difference(kind, where, " ".join(one["ids"]), " ".join(other["ids"]), rows)
    if one["labels"] != other["labels"]:
        yield Difference(Kind.labels, where, " ".join(one["labels"]), " ".join(other["labels"]))
    if one["pixels"] != other["pixels"]:
        yield Difference(Kind.pixels, where, one["pixels"], other["pixels"])


def _loss(where: str, one: Event, other: Event) -> Iterator[Difference]:
    if one["loss"] != other["loss"]:
        evaluating = one["mode"] == "eval"
        if one["random"] != other["random"] and not evaluating:
            yield Difference(Kind.random, where, _number(one["loss"]), _number(other["loss"]))
        yield Difference(
            Kind.evaluation if evaluating else Kind.loss, where, _number(one["loss"]), _number(other["loss"])
        )


def _log(where: str, one: Event, other: Event) -> Iterator[Difference]:
    for key, kind in (
        ("loss", Kind.reported_loss),
        ("grad_norm", Kind.grad_norm),
        ("eval_loss", Kind.evaluation),
    ):
        if one.get(key) != other.get(key):
            yield Difference(kind, where, _number(one.get(key)), _number(other.get(key)))


def _names(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[Difference]:
    if left == right and list(left) == list(right):
        return
    missing = [name for name in left if name not in right]
    extra = [name for name in right if name not in left]
    if missing or extra:
        yield Difference(
            Kind.trainables, "", listed(missing) if missing else "none", listed(extra) if extra else "none"
        )
        return
    pairs = list(zip(left.items(), right.items(), strict=True))
    one, other = next((a, b) for a, b in pairs if a != b)
    yield Difference(Kind.trainables, "order or shape", f"{one[0]} {one[1]}", f"{other[0]} {other[1]}")


def _digests(kind: Kind, where: str, left: Mapping[str, str], right: Mapping[str, str]) -> Iterator[Difference]:
    unequal = [name for name in dict.fromkeys((*left, *right)) if left.get(name) != right.get(name)]
    if unequal:
        first = unequal[0]
        place = ", ".join(part for part in (where, f"in {listed(unequal)}") if part)
        yield Difference(kind, place, left.get(first, "missing"), right.get(first, "missing"))


def _first_unequal(left: Sequence[Any], right: Sequence[Any]) -> tuple[str, str]:
    for one, other in zip_longest(left, right):
        if one is None or other is None:
            return ("no such group" if one is None else _group(one)), (
                "no such group" if other is None else _group(other)
            )
        if one != other:
            keys = [key for key in dict.fromkeys((*one, *other)) if one.get(key) != other.get(key)]
            return _group({key: one.get(key) for key in keys}), _group({key: other.get(key) for key in keys})
    return "", ""


def _group(group: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in group.items())


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return float.fromhex(value) if isinstance(value, str) and value.startswith(("0x", "-0x")) else value


def _number(text: str | None) -> str:
    return "none" if text is None else repr(float.fromhex(text))


def _what(event: Event | None) -> str:
    if event is None:
        return "nothing more"
    names = {"batch": "a forward pass", "step": "an optimizer step", "log": "a report", "end": "the end"}
    return names[event["event"]] + (" in evaluation" if event.get("mode") == "eval" else "")
