"""One row of a data file, in the common ``messages`` form or in the family's own, to an Example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from vlm_lora_plugin.contract import Family
from vlm_lora_plugin.contract.example import IMAGE_MARK, Example, Message, Role
from vlm_lora_plugin.data.file_kinds import holds_rows, to_lines
from vlm_lora_plugin.data.image_sources import parse_image
from vlm_lora_plugin.data.rows.keys import IMAGE, MESSAGE, MESSAGES_FORM, is_absent, leftover
from vlm_lora_plugin.data.rows.marks import learnt_mark, marked, system_text, with_system
from vlm_lora_plugin.data.rows.own_form import parse_own
from vlm_lora_plugin.data.rows.query_form import as_messages, is_query_row
from vlm_lora_plugin.data.rows.rules import EVERYTHING, RowRules
from vlm_lora_plugin.errors import DataError, DocumentError, TooLongError, nearest, ways_to_fit
from vlm_lora_plugin.outside.display import shown
from vlm_lora_plugin.outside.trees import check_tree
from vlm_lora_plugin.plugins.manager import get_manager

LIKE_THIS = (
    'A row looks like this: {"messages": [{"role": "user", "content": "<image>What is this?"}, '
    '{"role": "assistant", "content": "A cat."}], "images": ["cat.png"]}'
)

_ROLES: Mapping[str, Role] = {role: role for role in get_args(Role)}
TOOL_ROLES = ("tool", "tool_call", "tool_response", "function", "function_call", "observation")

_MISNAMED = {"image": "images", "image_path": "images", "img": "images", "message": "messages"}


@dataclass(frozen=True)
class RowFormat:
    """The part of a family that reading needs; unlike a whole family it can be pickled for a worker.

    Attributes:
        title: The family's title.
        parse_record: Reads a row of the family's own form; None where it has none. See
            :class:`vlm_lora_plugin.contract.DataFormats`.
        rules: What the recipe says about rows.
    """

    title: str
    parse_record: Callable[[Mapping[str, Any], Path, str], Example | None] | None
    rules: RowRules = EVERYTHING

    @classmethod
    def of(cls, family: Family, rules: RowRules = EVERYTHING) -> RowFormat:
        """Return a family's."""
        parse = family.data_formats.parse_record
        return cls(family.title, None if parse is None else get_manager().function(family, parse), rules)


def parse_row(record: object, folder: Path, origin: str, own: RowFormat) -> Example:
    """Turn one row into an Example; every text in it can be encoded, and it is not nested endlessly.

    Args:
        record: The decoded JSON value.
        folder: Where relative image paths start.
        origin: Name of the row for error messages, ``data.jsonl:17``.
        own: The family's own form, tried when there are no ``messages``, and what the recipe says about rows.

    Raises:
        DataError: The row is in no known form, or has keys that may change what it means and are not followed.
    """
    refuse_broken(record, origin)
    if not isinstance(record, Mapping):
        raise DataError(f"{origin}: a row must be an object, this is a {type(record).__name__}", fix=LIKE_THIS)
    return own.rules.applied(_example(record, folder, origin, own))


def _example(record: Mapping[str, Any], folder: Path, origin: str, own: RowFormat) -> Example:
    if "messages" in record:
        return _parse_messages(record, folder, origin, own.rules)
    example = parse_own(record, folder, origin, own.parse_record, own.rules) if own.parse_record else None
    if example is not None:
        return example
    if is_query_row(record):
        return _parse_messages(as_messages(record, origin, own.rules), folder, origin, own.rules)
    keys = shown(", ".join(map(str, record))) or "none"
    raise DataError(
        f"{origin}: the row has no `messages` and is not in {own.title}'s own format; its keys: {keys}",
        fix=to_lines(record) if holds_rows(record) else LIKE_THIS,
    )


def refuse_broken(record: object, origin: str) -> None:
    """Refuse a row that no tokenizer could take, or that is nested endlessly.

    Raises:
        DataError: A text in it holds half of a surrogate pair, or it has too many levels.
    """
    try:
        check_tree(record, text=True)
    except DocumentError as error:
        raise DataError(f"{origin}: {error.what}", fix="Write the row anew, or leave it out.") from None


def turns_of(record: Mapping[str, Any], origin: str, *, like_this: str) -> list[Any] | None:
    """Return the turns of a row in one of the forms that hold ``conversations``; None for a row of another form.

    Args:
        record: The decoded row.
        origin: Name of the row for error messages.
        like_this: A row as it should be.

    Raises:
        DataError: ``conversations`` is not a list, or empty.
    """
    if "conversations" not in record:
        return None
    turns = record["conversations"]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{origin}: `conversations` must be a list of turns", fix=like_this)
    return turns


def raise_for_rows(problems: list[DataError], rows: int, *, most: int = 5) -> None:
    """Raise one DataError for all unusable rows, naming the first ``most``; do nothing when there are none.

    Args:
        problems: One error for each unusable row; ``what`` starts with the row's file and line.
        rows: How many rows there are in all.
        most: How many to show.
    """
    if len(problems) == 1:
        raise problems[0]
    if problems:
        shown = "".join(f"\n  {problem.what}" for problem in problems[:most])
        more = f"\n  and {len(problems) - most} more" if len(problems) > most else ""
        too_long = [problem for problem in problems if isinstance(problem, TooLongError)]
        others = [problem.fix for problem in problems[:most] if problem.fix and not isinstance(problem, TooLongError)]
        fixes = dict.fromkeys([*([ways_to_fit(too_long)] if too_long else ()), *others])
        raise DataError(f"{len(problems)} of {rows} rows cannot be used:{shown}{more}", fix="\n".join(fixes))


def _parse_messages(record: Mapping[str, Any], folder: Path, origin: str, rules: RowRules) -> Example:
    record, ignored = rules.without_ignored(record)
    for wrong, right in _MISNAMED.items():
        if wrong in record and is_absent(record.get(right)) and not is_absent(record[wrong]):
            raise DataError(f"{origin}: unknown key `{wrong}`", fix=f"Write `{right}`. {LIKE_THIS}")
    passed = dict.fromkeys((*ignored, *leftover(record, MESSAGES_FORM, origin)))
    rows = record["messages"]
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{origin}: `messages` must be a list of messages", fix=LIKE_THIS)
    messages = []
    for number, row in enumerate(rows, 1):
        message, keys = _parse_message(row, f"{origin}: message {number}", rules)
        messages.append(message)
        passed.update(dict.fromkeys(keys))
    messages = list(with_system(messages, system_text(record, origin), origin))
    images = record.get("images") or []
    if isinstance(images, (str, Mapping)):
        images = [images]
    if not isinstance(images, list):
        raise DataError(f"{origin}: `images` must be a list, not {type(images).__name__}", fix=LIKE_THIS)
    for number, image in enumerate(images, 1):
        if isinstance(image, Mapping) and any(
            image.get(key) is not None for key in IMAGE
        ):  # else it is no image at all
            image, ignored = rules.without_ignored(image)
            found = leftover(image, IMAGE, f"{origin}: image {number}", level="images.")
            passed.update(dict.fromkeys((*(f"images.{key}" for key in ignored), *found)))
    marks = sum(message.content.count(IMAGE_MARK) for message in messages)
    if images and not marks:
        first = next((i for i, message in enumerate(messages) if message.role == "user"), 0)
        messages[first] = replace(messages[first], content=IMAGE_MARK * len(images) + messages[first].content)
    elif marks != len(images):
        raise DataError(
            f"{origin}: {marks} {IMAGE_MARK} marks in `messages`, {len(images)} in `images`",
            fix=f"Write one {IMAGE_MARK} for each image, or none at all to have them put first.",
        )
    return Example(
        messages=tuple(messages),
        images=tuple(parse_image(image, folder, origin) for image in images),
        origin=origin,
        passed_over=tuple(passed),
    )


def _parse_message(row: object, where: str, rules: RowRules) -> tuple[Message, tuple[str, ...]]:
    """Return a message, and which of its keys were passed over."""
    if not isinstance(row, Mapping) or not {"role", "content"} <= set(row):
        raise DataError(f"{where} needs `role` and `content`", fix=LIKE_THIS)
    row, ignored = rules.without_ignored(row)
    passed = leftover(row, MESSAGE, where, level="messages.")
    role, content = row["role"], row["content"]
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(f"{where} has the unknown role {role!r}", fix=_role_advice(str(role)))
    if not isinstance(content, str):
        raise DataError(
            f"{where}: `content` must be text, not {type(content).__name__}",
            fix=f"Write plain text with {IMAGE_MARK} where an image belongs, and the files in `images`.",
        )
    message = marked(Message(_ROLES[role], content), learnt_mark(row, where), row, where)
    return message, (*(f"messages.{key}" for key in ignored), *passed)


def _role_advice(role: str) -> str:
    """Return what to write instead of a role that is not one."""
    if role.lower() in TOOL_ROLES:
        return "No prompt of these families has a place for tools: write what they say into the user's text."
    meant = {"human": "user", "developer": "system", **dict.fromkeys(("gpt", "model", "bot"), "assistant")}
    hint = meant.get(role.lower())
    return f"Write {hint}." if hint else nearest(role, list(_ROLES))
