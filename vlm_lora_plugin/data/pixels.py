"""From an image file to the normalised pixels that a CLIP-like vision tower takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vlm_lora_plugin.data.images import open_image

# CLIP's published statistics, by which all families here normalise.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def load_pixels(image: Path | bytes | Image.Image, size: int, *, origin: str = "image") -> torch.Tensor:
    """Open an image, resize it to a square and normalise it.

    The rules of Monkey's ``visual.encode`` and of OmniLMM's evaluation transform: bicubic, the aspect ratio is not
    kept, an alpha channel is dropped, EXIF rotation is not applied.

    Args:
        image: A file, the bytes of an encoded image, or an open Pillow image.
        size: Side length in pixels of the result.
        origin: Where the image was named, ``data.jsonl:17``, for error messages.

    Returns:
        ``[3, size, size]`` fp32, channels RGB.

    Raises:
        DataError: The image cannot be used; see :func:`vlm_lora_plugin.data.images.open_image`.
    """
    return normalised(read_rgb(image, origin=origin).resize((size, size), Image.Resampling.BICUBIC))


def read_rgb(image: Path | bytes | Image.Image, *, origin: str = "image") -> Image.Image:
    """Open an image and decode it as RGB; an alpha channel is dropped, EXIF rotation is not applied.

    Raises:
        DataError: The image cannot be used; see :func:`vlm_lora_plugin.data.images.open_image`.
    """
    with open_image(image, origin=origin) as opened:
        # Straight from palette to RGB, Pillow would warn about a transparency that is to be dropped anyway.
        whole = opened.convert("RGBA") if opened.mode == "P" else opened
        return whole.convert("RGB")


def normalised(rgb: Image.Image) -> torch.Tensor:
    """Return an RGB image of ``W`` x ``H`` as ``[3, H, W]`` fp32, by CLIP's mean and deviation."""
    channels_last = torch.from_numpy(np.array(rgb))
    pixels = channels_last.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return pixels.sub_(mean).div_(std)
