"""From an image file to the pixels that the vision tower takes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from vlm_lora_plugin.errors import DataError

# CLIP's published statistics; upstream normalises with them (monkey_model/visual.py).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def load_pixels(image: Path | bytes | Image.Image, size: int, *, origin: str = "image") -> torch.Tensor:
    """Open an image, resize it to a square and normalise it, as upstream's ``visual.encode`` does.

    Upstream's rules: the aspect ratio is not kept, an alpha channel is dropped, EXIF rotation is not applied.

    Args:
        image: A file, the bytes of an encoded image, or an open Pillow image.
        size: Side length in pixels of the result (``config.visual["image_size"]``).
        origin: Where the image was named, ``data.jsonl:17``, for error messages.

    Returns:
        ``[3, size, size]`` fp32, channels RGB.

    Raises:
        DataError: The image is missing, empty, broken, cut short, larger than Pillow's safety limit, or has
            more than 8 bits a channel.
    """
    with _readable(image, origin) as opened:
        if opened.mode == "P":  # straight to RGB, Pillow warns about a transparency that is to be dropped anyway
            opened = opened.convert("RGBA")
        rgb = opened.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    channels_last = torch.from_numpy(np.array(rgb))
    pixels = channels_last.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return pixels.sub_(mean).div_(std)


def check_image(image: Path | bytes, *, origin: str = "image") -> tuple[int, int]:
    """Read an image's header and return (width, height) in pixels, without decoding it.

    Raises:
        DataError: As :func:`load_pixels`, but damage after the header stays unseen.
    """
    with _readable(image, origin) as opened:
        return opened.size


@contextmanager
def _readable(image: Path | bytes | Image.Image, origin: str) -> Iterator[Image.Image]:
    """Yield the opened image; every failure while opening or decoding becomes a DataError."""
    name = _describe(image)
    try:
        if isinstance(image, Image.Image):
            _refuse_unusable(image)
            yield image
            return
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            _refuse_unusable(opened)
            yield opened
    except FileNotFoundError:
        raise DataError(
            f"{origin}: there is no image {name}",
            fix="Correct the path; a relative one in a data file is looked up beside that file.",
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{origin}: {name} is too large to decode safely: {error}",
            fix="Make the image smaller; the model sees far fewer pixels than that.",
        ) from None
    except UnidentifiedImageError:
        raise DataError(
            f"{origin}: {name} is empty, broken, or in no image format that Pillow knows",
            fix="Replace the file, or remove the row from the data.",
        ) from None
    except Exception as error:  # Pillow's decoders raise nearly any type on a damaged file
        raise DataError(
            f"{origin}: {name} cannot be read as an image: {str(error) or type(error).__name__}",
            fix="Replace the file, or remove the row from the data.",
        ) from error


def _refuse_unusable(image: Image.Image) -> None:
    if 0 in image.size:
        raise ValueError(f"it has no pixels ({image.width} x {image.height})")
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow's conversion to RGB clips these to 0..255, which leaves a white picture.
        raise ValueError(f"it has more than 8 bits a channel (Pillow mode {image.mode}); convert it to 8 bits")


def _describe(image: Path | bytes | Image.Image) -> str:
    if isinstance(image, bytes):
        return f"the embedded image ({len(image)} bytes)"
    return "the given Pillow image" if isinstance(image, Image.Image) else str(image)
