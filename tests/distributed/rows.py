"""The rows of the jobs: short conversations about pictures of one colour."""

from __future__ import annotations

import io
from collections.abc import Iterable

from PIL import Image

from vlm_lora_plugin.contract.example import Example, Message

IMAGES = {"t": 0, "i": 1, "I": 2, "M": 3}
"""Images of a row, by its letter."""


def examples(kinds: Iterable[str]) -> list[Example]:
    """Return a row for each letter of :data:`IMAGES`; images differ in colour and shape, answers in length."""
    return [_example(index, IMAGES[kind]) for index, kind in enumerate(kinds)]


def _example(index: int, images: int) -> Example:
    pictures = []
    for number in range(images):
        file = io.BytesIO()
        size = (20 + 20 * ((index + number) % 3), 20)
        Image.new("RGB", size, (30 * index % 256, 90 + 60 * number, 30)).save(file, "PNG")
        pictures.append(file.getvalue())
    answer = str(index) * (index % 8 + 1)
    turns = (Message("user", "<image>" * images + "number?"), Message("assistant", answer))
    return Example(turns, tuple(pictures))
