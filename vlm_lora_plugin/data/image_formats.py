"""Which images are read: a fixed list of raster formats, whatever else Pillow could open.

Pillow tells a format by a file's content, not by its name, and some of its readers start other programs: of EPS it runs
Ghostscript.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from importlib import import_module

from PIL import Image

_MODULES = {
    "PNG": "PngImagePlugin",
    "JPEG": "JpegImagePlugin",
    "MPO": "MpoImagePlugin",
    "WEBP": "WebPImagePlugin",
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "PPM": "PpmImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "AVIF": "AvifImagePlugin",
}
"""Pillow's names of the formats, and where it reads each. MPO is JPEG with further pictures behind the first."""

READABLE = "PNG, JPEG, WEBP, GIF, BMP, TIFF, PPM, JPEG 2000 and AVIF"
"""The formats, for messages."""


@lru_cache(maxsize=1)
def raster_formats() -> tuple[str, ...]:
    """Return the names for ``Image.open(formats=...)``, as far as this Pillow has them: an unknown one raises there."""
    for module in _MODULES.values():
        with suppress(ImportError):  # AVIF is in Pillow since 11.3
            import_module(f"PIL.{module}")
    return tuple(name for name in _MODULES if name in Image.OPEN)


def is_readable(image: Image.Image) -> bool:
    """Return whether a picture that somebody else opened is of these formats, or was made in memory."""
    return image.format is None or image.format in _MODULES
