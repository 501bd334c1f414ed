"""Monkey's own data format: conversations with the image's path inside the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora_monkey.names import IMAGE_END, IMAGE_START
from vlm_lora_plugin.contract import IMAGE_MARK, Example, Message, Role
from vlm_lora_plugin.data.encoding import resolve_image_path, turns_of
from vlm_lora_plugin.errors import DataError

_LIKE_THIS = (
    'A row looks like this: {"conversations": [{"from": "user", "value": "<img>cat.png</img> What is this? Answer: "}, '
    '{"from": "assistant", "value": "A cat."}]}'
)

_ROLES: Mapping[str, Role] = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_INLINE_IMAGE = re.compile(f"{IMAGE_START}(.*?){IMAGE_END}", re.DOTALL)


def parse_record(record: Mapping[str, Any], folder: Path, origin: str) -> Example | None:
    """Read ``{"conversations": [{"from": ..., "value": "<img>path</img> question Answer: "}, ...]}``.

    The text stays exactly as written (``Example.verbatim``); each ``<img>path</img>`` becomes an image mark.

    Given and answered as :class:`~vlm_lora_plugin.contract.DataFormats` says; None for a row without ``conversations``.

    Raises:
        DataError: A turn lacks a key, has an unknown role, an unclosed image tag or a literal ``<image>``. (Upstream
            prints an error for an unclosed tag and trains on what is left of the row.)
    """
    turns = turns_of(record, origin, like_this=_LIKE_THIS)
    if turns is None:
        return None
    images: list[Path | bytes] = []
    messages = []
    for number, turn in enumerate(turns, 1):
        where = f"{origin}: turn {number}"
        if not isinstance(turn, Mapping) or not {"from", "value"} <= set(turn) or not isinstance(turn["value"], str):
            raise DataError(f"{where} needs `from` and `value`, both text", fix=_LIKE_THIS)
        speaker = turn["from"]
        if not isinstance(speaker, str) or speaker not in _ROLES:
            raise DataError(
                f"{where} is from {speaker!r}",
                why="Monkey's own form has questions and answers alone.",
                fix="Write user or assistant; a system message can stand in rows with `messages`.",
            )
        value: str = turn["value"]
        if IMAGE_MARK in value:
            raise DataError(
                f"{where} holds {IMAGE_MARK}",
                why="In `conversations` an image stands inline, so this would be taken for one that is not there.",
                fix=f"Write {IMAGE_START}path{IMAGE_END}, or give the row as `messages` and `images`.",
            )
        paths = _INLINE_IMAGE.findall(value)
        messages.append(Message(_ROLES[speaker], _INLINE_IMAGE.sub(IMAGE_MARK, value)))
        if any(tag in text for tag in (IMAGE_START, IMAGE_END) for text in (*paths, messages[-1].content)):
            raise DataError(
                f"{where} has an {IMAGE_START} without {IMAGE_END}, or the other way round: {value[:80]!r}",
                fix=f"Close every {IMAGE_START}; text about the tag itself can be trained on in rows with `messages`.",
            )
        images += [resolve_image_path(path, folder, origin) for path in paths]
    return Example(tuple(messages), tuple(images), origin, verbatim=True)
