"""What becomes of a row that is longer than ``max_length``, and which ``hd_num`` would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vlm_lora_plugin.data.encoding import IGNORE_INDEX, Encoded
from vlm_lora_plugin.errors import TooLongError

HD_NUM = "hd_num"
SETTING = f"data.processor.{HD_NUM}"


def refuse_unfit(
    encoded: Encoded,
    origin: str,
    max_length: int,
    truncation_strategy: str,
    *,
    hd_num: int | None,
    tokens_at: Callable[[int], Sequence[int]],
) -> None:
    """Refuse a row whose end may not be cut off, or not without cutting an image or every label.

    Args:
        encoded: A row of more than ``max_length`` tokens.
        origin: Its name.
        max_length: Most tokens allowed.
        truncation_strategy: ``raise`` or ``right``.
        hd_num: The one it was encoded with; None where images are not cut into crops.
        tokens_at: Returns the tokens of each image with another ``hd_num``.

    Raises:
        TooLongError: Names the row, the tokens needed and the largest ``hd_num`` with which it fits.
    """
    length = len(encoded.ids)
    inside = [stop for start, stop in encoded.blocks if stop > max_length]
    learnt = any(label != IGNORE_INDEX for label in encoded.labels[1:max_length])
    if truncation_strategy == "right" and not inside and learnt:
        return
    if truncation_strategy != "right":
        needed, problem = length, ""
    else:
        first = next(at for at, label in enumerate(encoded.labels) if at and label != IGNORE_INDEX)
        needed = max([first + 1, *(stop for _, stop in encoded.blocks)])
        problem = ", and cutting there would cut an image" if inside else ", and cut there, no label is left"
    images = sum(stop - start for start, stop in encoded.blocks)
    fits = None
    if hd_num is not None and encoded.blocks:
        room = max_length - (needed - images)
        fits = SETTING, next((fewer for fewer in range(hd_num - 1, 0, -1) if sum(tokens_at(fewer)) <= room), 0)
    advice = ""
    if fits is not None:
        advice = f"; the largest {HD_NUM} that fits is {fits[1]}" if fits[1] else f"; no {HD_NUM} is small enough"
    at = f" at {HD_NUM} {hd_num}" if fits is not None else ""
    share = f", {images} of them for images{at}" if images else ""
    raise TooLongError(
        f"{origin}: {needed} tokens are needed{share}; max_length is {max_length}{problem}{advice}",
        needed=needed,
        fits=fits,
        why="" if not problem else "The model takes whole images only, and learns nothing from a row without labels.",
    )
