"""Opening images so that whatever is wrong with one names the file and the row it came from."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from vlm_lora_plugin.data.image_formats import READABLE, is_readable, raster_formats
from vlm_lora_plugin.data.image_hints import other_spelling
from vlm_lora_plugin.errors import DataError
from vlm_lora_plugin.outside.display import shown
from vlm_lora_plugin.outside.files import open_file
from vlm_lora_plugin.outside.kinds import kind_of

_limit: ContextVar[int | None] = ContextVar("max_pixels", default=None)

_ON_THEIR_SIDE = (5, 6, 7, 8)  # EXIF's orientations that exchange width and height


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
            (``PIL.Image.MAX_IMAGE_PIXELS``) or ``max_pixels`` large, has more than 8 bits a channel, is not a regular
            file, or of a format that is not read (:mod:`vlm_lora_plugin.data.image_formats`).
    """
    name = _describe(image)
    max_pixels = _limit.get() if max_pixels is None else max_pixels
    try:
        if isinstance(image, Image.Image):
            if not is_readable(image):
                raise UnidentifiedImageError
            _refuse_unusable(image)
            _refuse_oversize(image, name, origin, max_pixels)
            yield image
            return
        with (
            io.BytesIO(image) if isinstance(image, bytes) else open_file(image) as stream,
            Image.open(stream, formats=raster_formats()) as opened,
        ):
            _refuse_unusable(opened)
            _refuse_oversize(opened, name, origin, max_pixels)
            yield opened
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(
            f"{origin}: there is no image {name}",
            fix=(other_spelling(image) if isinstance(image, Path) else None)
            or "Correct the path; a relative one in a data file is looked up beside that file.",
        ) from None
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{origin}: {name} is too large to decode safely: {error}",
            fix="Make the image smaller; the model sees far fewer pixels than that.",
        ) from None
    except UnidentifiedImageError:
        raise DataError(
            f"{origin}: {name} {_what_else(image)}",
            fix=f"Convert the image to one of {READABLE}, replace it, or remove the row from the data.",
        ) from None
    except OSError as error:
        raise DataError(
            f"{origin}: {name} cannot be read as an image: {error.strerror or error or type(error).__name__}",
            fix="Replace the image, or remove the row from the data.",
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly any type on a damaged file
        raise DataError(
            f"{origin}: {name} cannot be read as an image: {str(error) or type(error).__name__}",
            fix="Replace the image, or remove the row from the data.",
        ) from error


def image_size(
    image: Path | bytes, *, origin: str = "image", max_pixels: int | None = None, exif_transpose: bool = False
) -> tuple[int, int]:
    """Return (width, height) in pixels from an image's header; no pixel is decoded.

    Args:
        image: A file, or the bytes of an encoded image.
        origin: As in :func:`open_image`.
        max_pixels: As in :func:`open_image`.
        exif_transpose: Of the image turned as its EXIF data say.

    Raises:
        DataError: As :func:`open_image`.
    """
    with open_image(image, origin=origin, max_pixels=max_pixels) as opened:
        return turned_size(opened) if exif_transpose else opened.size


@dataclass(frozen=True)
class Peculiarities:
    """What of an image is not seen, or not as a viewer shows it.

    Attributes:
        animated: It has several frames or pages; the first is used.
        turned: Its EXIF data say to turn it.
        transparent: It has an alpha channel or a transparent colour.
    """

    animated: bool = False
    turned: bool = False
    transparent: bool = False


def peculiarities(image: Image.Image, *, decoded: bool = True) -> Peculiarities:
    """Look at an open image.

    Args:
        image: The image.
        decoded: Whether its pixels are decoded; if not, what its header says is all that is looked at.
    """
    try:
        # The further pictures of an MPO are not frames: other views, or brightness for screens that can show more.
        animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # what follows the first frame is broken, and nobody sees it
        animated = True
    hidden = image.format == "PNG" and not decoded and "exif" not in image.info
    return Peculiarities(animated, not hidden and orientation(image) != 1, _is_transparent(image))


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 to 8, of an open image; 1, upright, where it says none or is broken.

    Of PNG the EXIF data may stand behind the pixels, which are decoded to see. TIFF is turned by Pillow itself.
    """
    if image.format == "TIFF":
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF data, which viewers pass over as well
        return 1
    return found if found in range(1, 9) else 1


def turned_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) in pixels that an image has once it is turned as its EXIF data say."""
    width, height = image.size
    return (height, width) if orientation(image) in _ON_THEIR_SIDE else (width, height)


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
    return "the given Pillow image" if isinstance(image, Image.Image) else shown(image)


def _what_else(image: Path | bytes | Image.Image) -> str:
    """Return the rest of a sentence about an image in no format that is read."""
    if isinstance(image, Image.Image):
        return f"is in the format {image.format}, which is not read"
    try:
        with io.BytesIO(image) if isinstance(image, bytes) else open_file(image) as stream:
            head = stream.read(4096)
    except OSError:
        head = b""
    kind = kind_of(head)
    return f"is {kind}" if kind else "is empty, broken, or in no image format that is read"
