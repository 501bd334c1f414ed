"""The data format of the repository's MiniCPM-V scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora_plugin.contract import IMAGE_MARK, Example, Message, Role
from vlm_lora_plugin.data.encoding import resolve_image_path, turns_of
from vlm_lora_plugin.errors import DataError

_LIKE_THIS = (
    'A row looks like this: {"image": "cat.png", "conversations": [{"role": "user", "content": "<image>\\nWhat is '
    'this?"}, {"role": "assistant", "content": "A cat."}]}'
)

_ROLES: Mapping[str, Role] = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_NUMBERED = re.compile(r"<image_\d+>")


def parse_record(record: Mapping[str, Any], folder: Path, origin: str) -> Example | None:
    """Read ``{"image": ..., "conversations": [{"role": ..., "content": ...}, ...]}``; ``id`` is ignored.

    ``image`` is a path or, for several images, an object from the marks ``<image_00>``, ``<image_01>``... in the
    text to paths. With a path, ``<image>`` stands for it in the first turn, or it comes first where there is no
    mark; in later turns ``<image>`` is text. ``from``/``value`` are taken for ``role``/``content``, as by
    ``omni_preprocess``. Rows without ``image`` are text alone.

    Args:
        record: The decoded row.
        folder: Where relative image paths start.
        origin: Name of the row for error messages.

    Returns:
        The example, or None when the row has no ``conversations``.

    Raises:
        DataError: A turn lacks a key or has an unknown role, or images and marks do not fit.
    """
    turns = turns_of(record, origin, like_this=_LIKE_THIS)
    if turns is None:
        return None
    messages = [_message(turn, f"{origin}: turn {number}") for number, turn in enumerate(turns, 1)]
    image = record.get("image")
    if isinstance(image, Mapping):
        return _with_numbered_images(messages, image, folder, origin)
    if image is None:
        return Example(tuple(messages), (), origin, verbatim=True)
    if not isinstance(image, str):
        raise DataError(f"{origin}: `image` must be a path or an object of paths", fix=_LIKE_THIS)
    first = messages[0]
    if IMAGE_MARK not in first.content:
        messages[0] = Message(first.role, f"{IMAGE_MARK}\n{first.content}")
    return Example(tuple(messages), (resolve_image_path(image, folder, origin),), origin, verbatim=True)


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where} is not an object", fix=_LIKE_THIS)
    speaker = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(speaker, str) or not isinstance(content, str):
        raise DataError(f"{where} needs `role` and `content`, both text", fix=_LIKE_THIS)
    if speaker not in _ROLES:
        raise DataError(f"{where} is from {speaker!r}", fix="Write user or assistant.")
    return Message(_ROLES[speaker], content)


def _with_numbered_images(messages: list[Message], paths: Mapping[str, Any], folder: Path, origin: str) -> Example:
    """Return the example of an ``image`` object; its one key may also be ``<image>``."""
    if not all(isinstance(path, str) for path in paths.values()):
        raise DataError(f"{origin}: every value of `image` must be a path", fix=_LIKE_THIS)
    text = "\n".join(message.content for message in messages)
    unknown = sorted({*_NUMBERED.findall(text), *([IMAGE_MARK] if IMAGE_MARK in text else [])} - set(paths))
    unused = [mark for mark in paths if mark not in text]
    if unused == list(paths) and len(paths) == 1 and not unknown:  # nothing is marked: the one image comes first
        messages[0] = Message(messages[0].role, f"{unused[0]}\n{messages[0].content}")
        unused = []
    if unknown or unused:
        raise DataError(
            f"{origin}: "
            + (f"{unknown[0]} is not in `image`" if unknown else f"{unused[0]} of `image` stands in no turn"),
            why="Every image needs its mark in the text, and every mark its image.",
            fix='Write {"image": {"<image_00>": "a.png"}} and <image_00> where it belongs.',
        )
    pattern = re.compile("|".join(re.escape(mark) for mark in paths))
    images = [resolve_image_path(paths[mark], folder, origin) for m in messages for mark in pattern.findall(m.content)]
    return Example(tuple(Message(m.role, pattern.sub(IMAGE_MARK, m.content)) for m in messages), tuple(images), origin)
