"""Upstream's own data format: conversations with ``<ImageHere>`` in the text, and a list of image paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora_plugin.contract import IMAGE_MARK, Example, Message, Role
from vlm_lora_plugin.data.encoding import resolve_image_path, turns_of
from vlm_lora_plugin.errors import DataError

UPSTREAM_MARK = "<ImageHere>"

_LIKE_THIS = (
    'A row looks like this: {"image": ["cat.png"], "conversations": [{"from": "user", "value": "<ImageHere>What is '
    'this?"}, {"from": "assistant", "value": "A cat."}]}'
)

_ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatbot"), "assistant"),
    "system": "system",
}


def parse_record(record: Mapping[str, Any], folder: Path, origin: str) -> Example | None:
    """Read ``{"image": [path, ...], "conversations": [{"from": ..., "value": "<ImageHere>question"}, ...]}``.

    ``user`` and ``human`` ask; ``assistant``, ``gpt``, ``bot``, ``model`` and ``chatbot`` answer; upstream takes every
    speaker but the first two for the assistant, ``system`` too (:func:`~vlm_lora_xcomposer.prompt.upstream_text`).
    ``image`` may be one path, and absent where there is none; ``images`` is taken for it. The example is ``verbatim``:
    encoded token for token as upstream does.

    Given and answered as :class:`~vlm_lora_plugin.contract.DataFormats` says; None for a row without ``conversations``.

    Raises:
        DataError: A key is missing or of the wrong type, a speaker is unknown, or a text holds a literal ``<image>``.
    """
    turns = turns_of(record, origin, like_this=_LIKE_THIS)
    if turns is None:
        return None
    messages = [_message(turn, f"{origin}: turn {number}") for number, turn in enumerate(turns, 1)]
    if "image" in record and record.get("images"):
        raise DataError(f"{origin}: the row has `image` and `images`", fix="Keep one of them.")
    paths = record["image"] if "image" in record else record.get("images") or []
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise DataError(f"{origin}: `image` must be a list of paths", fix=_LIKE_THIS)
    images = tuple(resolve_image_path(path, folder, origin) for path in paths)
    return Example(tuple(messages), images, origin, verbatim=True)


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("from", "value")):
        raise DataError(f"{where} needs `from` and `value`, both text", fix=_LIKE_THIS)
    value: str = turn["value"]
    if IMAGE_MARK in value:
        raise DataError(
            f"{where} holds {IMAGE_MARK}",
            why=f"In `conversations` an image's place is {UPSTREAM_MARK}; this would be taken for one more image.",
            fix=f"Write {UPSTREAM_MARK}, or give the row as `messages` and `images`.",
        )
    role = _ROLES.get(turn["from"].lower())
    if role is None:
        raise DataError(
            f"{where} is from {turn['from'][:40]!r}",
            why="Upstream takes every speaker but user and human for the assistant, and would learn what it says.",
            fix="Write user or assistant, or system for the first turn.",
        )
    return Message(role, value.replace(UPSTREAM_MARK, IMAGE_MARK))
