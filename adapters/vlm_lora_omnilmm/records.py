"""The data format of the repository's MiniCPM-V scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_lora_plugin.contract import IMAGE_MARK, Example, Message, Role
from vlm_lora_plugin.data.encoding import resolve_image_path, turns_of
from vlm_lora_plugin.errors import DataError

_LIKE_THIS = (
    'A row looks like this: {"image": "cat.png", "conversations": [{"role": "user", "content": "<image>\\nWhat is '
    'this?"}, {"role": "assistant", "content": "A cat."}]}'
)

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_NUMBERED = re.compile(r"<image_\d+>")


def parse_record(record: Mapping[str, Any], folder: Path, origin: str) -> Example | None:
    """Read ``{"image": ..., "conversations": [{"role": ..., "content": ...}, ...]}``.

    ``image`` is a path or, for several images, an object from the marks ``<image_00>``, ``<image_01>``... in the
    text to paths. With a path, ``<image>`` stands for it in the first turn, or it comes first where there is no
    mark; in later turns ``<image>`` is text. ``images`` with one path is taken for it. ``from``/``value`` are taken for
    ``role``/``content``, as by ``omni_preprocess``. Rows without ``image`` are text alone.

    Given and answered as :class:`~vlm_lora_plugin.contract.DataFormats` says; None for a row without ``conversations``.

    Raises:
        DataError: A turn lacks a key or has an unknown role, or images and marks do not fit.
    """
    turns = turns_of(record, origin, like_this=_LIKE_THIS)
    if turns is None:
        return None
    messages = [_message(turn, f"{origin}: turn {number}") for number, turn in enumerate(turns, 1)]
    image = _image(record, origin)
    if isinstance(image, Mapping):
        return _with_numbered_images(messages, image, folder, origin)
    if image is None:
        return Example(tuple(messages), (), origin, verbatim=True)
    if not isinstance(image, str):
        raise DataError(f"{origin}: `image` must be a path or an object of paths", fix=_LIKE_THIS)
    at = _first(messages)
    if IMAGE_MARK not in messages[at].content:
        messages[at] = replace(messages[at], content=f"{IMAGE_MARK}\n{messages[at].content}")
    return Example(tuple(messages), (resolve_image_path(image, folder, origin),), origin, verbatim=True)


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where} is not an object", fix=_LIKE_THIS)
    speaker = turn["role"] if "role" in turn else turn.get("from")
    content = turn["content"] if "content" in turn else turn.get("value")
    if not isinstance(speaker, str) or not isinstance(content, str):
        raise DataError(f"{where} needs `role` and `content`, both text", fix=_LIKE_THIS)
    if speaker not in _ROLES:
        raise DataError(f"{where} is from {speaker!r}", fix="Write user or assistant, or system for the first turn.")
    return Message(_ROLES[speaker], content)


def _image(record: Mapping[str, Any], origin: str) -> Any:
    """Return ``image``, or the one path of ``images``.

    Raises:
        DataError: There are both, or several paths whose places nothing says.
    """
    image, images = record.get("image"), record.get("images")
    if not images:
        return image
    paths = [images] if isinstance(images, str) else images
    if image is not None or not isinstance(paths, list) or len(paths) != 1:
        raise DataError(
            f"{origin}: `images` beside `conversations` "
            + ("and `image`" if image is not None else "must be one path"),
            why="Which image stands where is not known.",
            fix='Write {"image": {"<image_00>": "a.png"}} and <image_00> where it belongs.',
        )
    return paths[0]


def _first(messages: list[Message]) -> int:
    """Return the place of the first turn, behind a system message."""
    return int(messages[0].role == "system" and len(messages) > 1)


def _with_numbered_images(messages: list[Message], paths: Mapping[str, Any], folder: Path, origin: str) -> Example:
    """Return the example of an ``image`` object; its one key may also be ``<image>``."""
    if not all(isinstance(path, str) for path in paths.values()):
        raise DataError(f"{origin}: every value of `image` must be a path", fix=_LIKE_THIS)
    text = "\n".join(message.content for message in messages)
    unknown = sorted({*_NUMBERED.findall(text), *([IMAGE_MARK] if IMAGE_MARK in text else [])} - set(paths))
    unused = [mark for mark in paths if mark not in text]
    if unused == list(paths) and len(paths) == 1 and not unknown:  # nothing is marked: the one image comes first
        at = _first(messages)
        messages[at] = replace(messages[at], content=f"{unused[0]}\n{messages[at].content}")
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
    return Example(
        tuple(replace(m, content=pattern.sub(IMAGE_MARK, m.content)) for m in messages), tuple(images), origin
    )
