"""From an image file to the normalised pixels that a CLIP-like vision tower takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from vlm_lora_plugin.data.images import open_image, orientation

# CLIP's published statistics, by which all families here normalise.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def load_pixels(
    image: Path | bytes | Image.Image, size: int, *, origin: str = "image", exif_transpose: bool | None = None
) -> torch.Tensor:
    """Open an image, resize it to a square and normalise it.

    The rules of Monkey's ``visual.encode`` and of OmniLMM's evaluation transform: bicubic, the aspect ratio is not
    kept, an alpha channel is dropped, EXIF rotation is not applied unless asked for.

    Args:
        image: A file, the bytes of an encoded image, or an open Pillow image.
        size: Side length in pixels of the result.
        origin: Where the image was named, ``data.jsonl:17``, for error messages.
        exif_transpose: As in :func:`read_rgb`.

    Returns:
        ``[3, size, size]`` fp32, channels RGB.

    Raises:
        DataError: The image cannot be used; see :func:`vlm_lora_plugin.data.images.open_image`.
    """
    rgb = read_rgb(image, origin=origin, exif_transpose=exif_transpose)
    return normalised(rgb.resize((size, size), Image.Resampling.BICUBIC))


_turns: ContextVar[bool] = ContextVar("exif_transpose", default=False)


@contextmanager
def turning_images(exif_transpose: bool) -> Iterator[None]:
    """Have :func:`read_rgb` turn images inside the ``with``, or not, where it is not told otherwise.

    So a recipe's ``data.exif_transpose`` reaches every family's own reading.
    """
    token = _turns.set(exif_transpose)
    try:
        yield
    finally:
        _turns.reset(token)


def read_rgb(
    image: Path | bytes | Image.Image, *, origin: str = "image", exif_transpose: bool | None = None
) -> Image.Image:
    """Open an image and decode it as RGB; an alpha channel is dropped, and of several frames the first is taken.

    Args:
        image: A file, the bytes of an encoded image, or an open Pillow image.
        origin: Where the image was named, ``data.jsonl:17``, for error messages.
        exif_transpose: Turn the image as its EXIF data say; None for what :func:`turning_images` says, or else not.

    Raises:
        DataError: The image cannot be used; see :func:`vlm_lora_plugin.data.images.open_image`.
    """
    with open_image(image, origin=origin) as opened:
        turns = _turns.get() if exif_transpose is None else exif_transpose
        if turns and orientation(opened) != 1:
            opened = ImageOps.exif_transpose(opened)
        # Straight from palette to RGB, Pillow would warn about a transparency that is to be dropped anyway.
        whole = opened.convert("RGBA") if opened.mode == "P" else opened
        return whole.convert("RGB")


def normalised(rgb: Image.Image) -> torch.Tensor:
    """Return an RGB image of ``W`` x ``H`` as ``[3, H, W]`` fp32, by CLIP's mean and deviation."""
    channels_last = torch.from_numpy(np.array(rgb))
    pixels = channels_last.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return pixels.sub_(mean).div_(std)
