"""A row in the family's own form: what the family's parser does not look at makes the row a bad one."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_lora_plugin.contract.example import Example
from vlm_lora_plugin.data.rows.keys import HARMLESS, MARKS, SYSTEM, is_absent, is_harmless, refuse_unknown
from vlm_lora_plugin.data.rows.marks import learnt_mark, marked, system_text, with_system
from vlm_lora_plugin.data.rows.rules import RowRules
from vlm_lora_plugin.errors import DataError

TURNS = "conversations"

ParseRecord = Callable[[Mapping[str, Any], Path, str], Example | None]


def parse_own(
    record: Mapping[str, Any], folder: Path, origin: str, parse: ParseRecord, rules: RowRules
) -> Example | None:
    """Read a row of the family's own form, and follow what the core follows in every form.

    These are the row's system message and the marks of its turns; the family's parser sees neither. Of all other keys
    it must look at each that does not change nothing: a parser cannot forget one silently.

    Args:
        record: The decoded row.
        folder: Where relative image paths start.
        origin: Name of the row for error messages.
        parse: The family's parser, ``DataFormats.parse_record``.
        rules: What the recipe says about rows.

    Returns:
        The example, or None where the row is of another form.

    Raises:
        DataError: The row is wrong, or has keys that nothing follows; names them.
    """
    rest, ignored = rules.without_ignored(record)
    turns = rest.get(TURNS)
    marks: list[bool | None] = []
    if isinstance(turns, list):
        rest[TURNS], marks, of_turns = _without_marks(turns, origin, rules)
        ignored += of_turns
    system = system_text(rest, origin)
    seen = _Seen({key: value for key, value in rest.items() if key not in SYSTEM})
    example = parse(seen, folder, origin)
    if example is None:
        return None
    passed = ignored + _passed_over(seen, origin, rules)
    if rules.upstream_labels and (system is not None or any(mark is not None for mark in marks)):
        key = "system" if system is not None else "weight or loss"
        raise DataError(
            f"{origin}: the row has `{key}`, and data.upstream_labels is true",
            why="Upstream's form has no such key, and its label mask knows none.",
            fix="Remove the key, or data.upstream_labels.",
        )
    if any(mark is not None for mark in marks):
        example = replace(example, messages=_marked(example, marks, turns or [], origin))
    return replace(
        example,
        messages=with_system(example.messages, system, origin),
        by_roles=not rules.upstream_labels,
        passed_over=passed,
    )


def _without_marks(
    turns: list[Any], origin: str, rules: RowRules
) -> tuple[list[Any], list[bool | None], tuple[str, ...]]:
    """Return turns without ignored keys and marks, the marks, and the ignored keys that there were."""
    kept: list[Any] = []
    marks: list[bool | None] = []
    ignored: dict[str, None] = {}
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            kept.append(turn)
            marks.append(None)
            continue
        rest, keys = rules.without_ignored(turn)
        ignored.update(dict.fromkeys(f"{TURNS}.{key}" for key in keys))
        marks.append(learnt_mark(rest, f"{origin}: turn {number}"))
        kept.append({key: value for key, value in rest.items() if key not in MARKS})
    return kept, marks, tuple(ignored)


def _marked(example: Example, marks: list[bool | None], turns: list[Any], origin: str) -> tuple[Any, ...]:
    if len(example.messages) != len(marks):
        raise DataError(
            f"{origin}: turns are marked with a weight or loss, and {len(marks)} turns became "
            f"{len(example.messages)} messages",
            why="Which answer a mark belongs to is not known.",
            fix="Give the row as `messages`.",
        )
    return tuple(
        marked(message, mark, turn if isinstance(turn, Mapping) else {}, f"{origin}: turn {number}")
        for number, (message, mark, turn) in enumerate(zip(example.messages, marks, turns, strict=True), 1)
    )


def _passed_over(seen: _Seen, origin: str, rules: RowRules) -> tuple[str, ...]:
    """Return the keys that change nothing and were not looked at; refuse all others that were not."""
    passed: dict[str, None] = {}
    for level, where, record in _levels(seen, origin):
        unseen = [
            key for key in dict.keys(record) if key not in record.looked_at and not is_absent(dict.get(record, key))
        ]
        unknown = [key for key in unseen if not is_harmless(key) and key not in rules.ignore_keys]
        refuse_unknown(unknown, record.looked_at - set(HARMLESS), where)
        passed.update(dict.fromkeys(level + key for key in unseen))
    return tuple(passed)


def _levels(row: _Seen, origin: str) -> Iterator[tuple[str, str, _Seen]]:
    yield "", origin, row
    for key, value in dict.items(row):
        if key not in row.looked_at:
            continue
        if isinstance(value, _Seen):
            yield f"{key}.", f"{origin}: `{key}`", value
        elif isinstance(value, list):
            name = "turn" if key == TURNS else f"`{key}`"
            for number, item in enumerate(value, 1):
                if isinstance(item, _Seen):
                    yield f"{key}.", f"{origin}: {name} {number}", item


class _Seen(dict[str, Any]):
    """A row that remembers which of its keys were looked at; so do the objects in it, one list deep.

    To ask for all values or items at once, also by ``dict(row)``, counts as looking at each; for the keys does not.
    """

    def __init__(self, record: Mapping[str, Any], depth: int = 1) -> None:
        super().__init__({key: _watched(value, depth) for key, value in record.items()})
        self.looked_at: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.looked_at.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.looked_at.add(key)
        return super().get(key, default)

    def pop(self, key: str, *default: Any) -> Any:
        self.looked_at.add(key)
        return super().pop(key, *default)

    def __iter__(self) -> Iterator[str]:  # with it, copies by C code go through __getitem__
        return super().__iter__()

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]  # dict's own view is not a type one can name
        self.looked_at.update(self)
        return super().items()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]  # as above
        self.looked_at.update(self)
        return super().values()

    def copy(self) -> dict[str, Any]:
        return dict(self.items())


def _watched(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        return _Seen(value, depth - 1) if depth > 0 else value
    if isinstance(value, list) and depth > 0:
        return [_Seen(item, depth - 1) if isinstance(item, Mapping) else item for item in value]
    return value
