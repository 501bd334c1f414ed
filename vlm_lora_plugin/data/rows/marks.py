"""What a turn says about its own loss, and what a row says before its first turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlm_lora_plugin.contract.example import Message
from vlm_lora_plugin.data.rows.keys import MARKS, SWITCHES, SYSTEM, is_absent
from vlm_lora_plugin.errors import DataError, listed


def learnt_mark(turn: Mapping[str, Any], where: str) -> bool | None:
    """Return whether a turn says that it is learnt from; None where it does not say.

    Args:
        turn: The turn, perhaps with the keys of :data:`~vlm_lora_plugin.data.rows.keys.MARKS`.
        where: Its name, the beginning of an error message.

    Raises:
        DataError: A value is neither yes nor no, or two keys contradict each other.
    """
    said = {key: _as_bool(key, turn[key], where) for key in MARKS if turn.get(key) is not None}
    if len(set(said.values())) > 1:
        raise DataError(
            f"{where}: {' and '.join(f'`{key}` {_shown(turn[key])}' for key in said)} contradict each other",
            fix="Keep one of them.",
        )
    return next(iter(said.values()), None)


def marked(message: Message, mark: bool | None, keys: Mapping[str, Any], where: str) -> Message:
    """Return a message with its mark.

    Args:
        message: The message.
        mark: From :func:`learnt_mark`.
        keys: The turn, for the error message.
        where: Its name, the beginning of an error message.

    Raises:
        DataError: It asks for learning what the assistant does not say.
    """
    if mark is None:
        return message
    if message.role != "assistant":
        if mark:
            key = next(key for key in MARKS if keys.get(key) is not None)
            raise DataError(
                f"{where}: `{key}` is {_shown(keys[key])} in a message of the {message.role}'s",
                why="Only answers of the assistant are learnt from.",
                fix=f"Remove `{key}`, or write {'false' if key in SWITCHES else '0'}.",
            )
        return message
    return replace(message, learnt=mark)


def system_text(record: Mapping[str, Any], origin: str) -> str | None:
    """Return the system message that a row has as a key, as in ms-swift; None for none.

    Raises:
        DataError: It is not text, or two keys say different things.
    """
    said = {key: record[key] for key in SYSTEM if not is_absent(record.get(key))}
    for key, value in said.items():
        if not isinstance(value, str):
            raise DataError(
                f"{origin}: `{key}` must be text, not {type(value).__name__}", fix="Write the system message as text."
            )
    texts = set(said.values())
    if len(texts) > 1:
        raise DataError(f"{origin}: {listed(f'`{key}`' for key in said)} differ", fix="Keep one of them.")
    return texts.pop() if texts else None


def with_system(messages: Sequence[Message], text: str | None, origin: str) -> tuple[Message, ...]:
    """Return a conversation that begins with a row's system message.

    Raises:
        DataError: It has another one already.
    """
    if text is None:
        return tuple(messages)
    own = [message.content for message in messages if message.role == "system"]
    if own and own != [text]:
        raise DataError(
            f"{origin}: the row has `system` and a message with the role system, and they differ",
            fix="Keep one of them.",
        )
    return tuple(messages) if own else (Message("system", text), *messages)


def _as_bool(key: str, value: object, where: str) -> bool:
    if key in SWITCHES:
        if isinstance(value, bool):
            return value
        wanted = "true or false"
    else:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value in (0, 1):
            return bool(value)
        wanted = "0 or 1"
    raise DataError(
        f"{where}: `{key}` is {_shown(value)}",
        why="An answer is learnt from or not: the loss is the mean over all tokens that are, each counting alike.",
        fix=f"Write {wanted}, or remove `{key}`.",
    )


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)[:60]
