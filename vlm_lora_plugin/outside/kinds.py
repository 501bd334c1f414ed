"""What a file is by its first bytes, where it is not what was asked for."""

from __future__ import annotations

import re

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (rb"PAR1", "a parquet file"),
    (rb"ARROW1|\xff\xff\xff\xff.{4}\x10", "an Arrow file"),
    (rb"\x1f\x8b", "a gzip file"),
    (rb"BZh\d", "a bzip2 file"),
    (rb"\xfd7zXZ\x00", "an xz file"),
    (rb"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (rb"PK\x03\x04|PK\x05\x06", "a ZIP file (a spreadsheet and a NumPy archive are one, too)"),
    (rb"Rar!\x1a\x07|7z\xbc\xaf\x27\x1c", "an archive"),
    (rb".{257}ustar", "a tar archive"),
    (rb"SQLite format 3", "an SQLite database"),
    (rb"\x89HDF\r\n", "an HDF5 file"),
    (rb"\xd0\xcf\x11\xe0", "an old Microsoft Office file"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
    (rb"\s*<!doctype html|\s*<html", "a web page"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript drawing (EPS)"),
    (rb"%PDF-", "a PDF document"),
    (rb"\s*(<\?xml.{0,2000})?<svg", "an SVG drawing"),
    (rb".{4}ftyp(heic|heix|hevc|mif1|msf1)", "a HEIC photograph"),
    (rb".{4}ftyp(qt|isom|mp4|M4V)|\x1aE\xdf\xa3|RIFF.{4}AVI ", "a video"),
    (rb"8BPS", "a Photoshop document"),
    (rb"\x80[\x02-\x05]", "a Python pickle"),
)

_IMAGES = rb"\x89PNG|\xff\xd8\xff|GIF8|BM.{4}\x00\x00|RIFF.{4}WEBP|II\*\x00|MM\x00\*|\x00\x00\x00\x0cjP|.{4}ftypavi"


def kind_of(head: bytes) -> str | None:
    """Return in words what a file is that begins so, or None where its first bytes do not tell.

    Args:
        head: The first 4,096 bytes, or all.

    Example:
        >>> kind_of(b"PAR1...")
        'a parquet file'
    """
    for pattern, words in _MAGIC:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return words
    return None


def is_image(head: bytes) -> bool:
    """Return whether a file that begins so is a picture in a raster format."""
    return re.match(_IMAGES, head, re.DOTALL) is not None


def is_utf16(head: bytes) -> bool:
    """Return whether bytes are text in UTF-16 or UTF-32: by their byte-order mark, or every other byte is NUL."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        return True
    sample = head[:256]
    return len(sample) >= 8 and any(sample[start::2].count(0) > 0.8 * len(sample[start::2]) for start in (0, 1))
