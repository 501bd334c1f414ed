"""Opening images so that whatever is wrong with one names the file and the row it came from."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from vlm_lora_plugin.errors import DataError

_limit: ContextVar[int | None] = ContextVar("max_pixels", default=None)


@contextmanager
def pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """Have :func:`open_image` allow this many pixels at most inside the ``with``, where it is not told otherwise.

    So whoever encodes a row bounds its images without opening each of them once more.
    """
    token = _limit.set(max_pixels)
    try:
        yield
    finally:
        _limit.reset(token)


@contextmanager
def open_image(
    image: Path | bytes | Image.Image, *, origin: str = "image", max_pixels: int | None = None
) -> Iterator[Image.Image]:
    """Open an image; what fails on opening it, or on decoding it inside the ``with``, becomes a DataError.

    Args:
        image: A file, the bytes of an encoded image, or an open Pillow image, which is given back as it is.
        origin: Where the image was named, ``data.jsonl:17``, for error messages.
        max_pixels: Most pixels (width x height) allowed, checked before any is decoded; None for that of
            :func:`pixel_limit`, or else Pillow's.

    Yields:
        The image, its header read and its pixels not yet decoded, with 8 bits a channel or fewer.

    Raises:
        DataError: The image is missing, empty, broken, cut short, more than twice Pillow's safety limit
            (``PIL.Image.MAX_IMAGE_PIXELS``) or ``max_pixels`` large, or has more than 8 bits a channel.
    """
    name = _describe(image)
    max_pixels = _limit.get() if max_pixels is None else max_pixels
    try:
        if isinstance(image, Image.Image):
            _refuse_unusable(image)
            _refuse_oversize(image, name, origin, max_pixels)
            yield image
            return
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            _refuse_unusable(opened)
            _refuse_oversize(opened, name, origin, max_pixels)
            yield opened
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(
            f"{origin}: there is no image {name}",
            fix="Correct the path; a relative one in a data file is looked up beside that file.",
        ) from None
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{origin}: {name} is too large to decode safely: {error}",
            fix="Make the image smaller; the model sees far fewer pixels than that.",
        ) from None
    except UnidentifiedImageError:
        raise DataError(
            f"{origin}: {name} is empty, broken, or in no image format that Pillow knows",
            fix="Replace the image, or remove the row from the data.",
        ) from None
    except Exception as error:  # Pillow's decoders raise nearly any type on a damaged file
        raise DataError(
            f"{origin}: {name} cannot be read as an image: {str(error) or type(error).__name__}",
            fix="Replace the image, or remove the row from the data.",
        ) from error


def image_size(image: Path | bytes, *, origin: str = "image", max_pixels: int | None = None) -> tuple[int, int]:
    """Return (width, height) in pixels from an image's header; no pixel is decoded.

    Raises:
        DataError: As :func:`open_image`.
    """
    with open_image(image, origin=origin, max_pixels=max_pixels) as opened:
        return opened.size


def _refuse_unusable(image: Image.Image) -> None:
    if 0 in image.size:
        raise ValueError(f"it has no pixels ({image.width} x {image.height})")
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow's conversion to RGB clips these to 0..255, which leaves a white picture.
        raise ValueError(f"it has more than 8 bits a channel (Pillow mode {image.mode}); convert it to 8 bits")


def _refuse_oversize(image: Image.Image, name: str, origin: str, max_pixels: int | None) -> None:
    pixels = image.width * image.height
    if max_pixels is not None and pixels > max_pixels:
        raise DataError(
            f"{origin}: {name} has {image.width} x {image.height} = {pixels:,} pixels, "
            f"data.max_image_pixels is {max_pixels:,}",
            why="Decoding it could exhaust the host's memory.",
            fix="Make the image smaller (the model sees far fewer pixels), or raise data.max_image_pixels.",
        )


def _describe(image: Path | bytes | Image.Image) -> str:
    if isinstance(image, bytes):
        return f"the embedded image ({len(image)} bytes)"
    return "the given Pillow image" if isinstance(image, Image.Image) else str(image)
