"""What a row names as an image: a path, a ``file://`` address, or the image itself as base64."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vlm_lora_plugin.errors import DataError
from vlm_lora_plugin.outside.display import shown
from vlm_lora_plugin.outside.files import refuse_impossible
from vlm_lora_plugin.outside.kinds import is_image

_LONGEST_PATH = 4096
"""Characters of a path that Linux takes; what is longer is meant as something else."""

_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,14}://")
_SHORTEST = 64
"""Characters from which on a text is taken for base64 where it decodes to an image: no image is smaller."""


def resolve_image_path(path: str, folder: Path, origin: str) -> Path | bytes:
    """Return the file that an image path in a row means, relative ones from ``folder`` on, or the bytes that it holds.

    Bytes come from a data URI (``data:image/png;base64,...``) or bare base64 that decodes to an image.

    Raises:
        DataError: The path is empty, an address on a network, impossible as a path, or broken base64.
    """
    if not path.strip():
        raise DataError(f"{origin}: an image path is empty", fix="Write the path of a file, or remove the image.")
    if path[:5].lower() == "data:":
        return _of_data_uri(path, origin)
    if path[:7].lower() == "file://":
        path = _of_file_address(path, origin)
    elif _ADDRESS.match(path):
        raise DataError(
            f"{origin}: the image '{shown(path, 80)}' is a URL",
            why="Training reads images from disk only, so that a run does not depend on a server.",
            fix='Download it and write its path, or embed it as {"bytes": "<base64>"}.',
        )
    elif len(path) >= _SHORTEST and (content := _bare_base64(path)) is not None:
        return content
    if len(path) > _LONGEST_PATH:
        raise DataError(
            f"{origin}: an image path has {len(path):,} characters: '{shown(path, 40)}'",
            why="No path is that long, and it is not the base64 of an image either.",
            fix='Write the path of a file, or {"bytes": "<base64>"}.',
        )
    try:
        refuse_impossible(path)
    except OSError as error:
        raise DataError(
            f"{origin}: the image path '{shown(path, 80)}' is impossible: {error.strerror}",
            fix="Correct the path, or remove the row.",
        ) from None
    return folder / path


def parse_image(image: object, folder: Path, origin: str) -> Path | bytes:
    """Return what one entry of ``images`` means.

    Args:
        image: A path or base64 in a text, ``{"path": ...}`` or ``{"bytes": base64}``.
        folder: Where relative paths start.
        origin: Name of the row for error messages.

    Raises:
        DataError: It is none of these, or as :func:`resolve_image_path`.
    """
    if isinstance(image, Mapping):
        encoded, image = image.get("bytes"), image.get("path")
        if isinstance(encoded, bytes):  # from Python; JSON has none
            return encoded
        if isinstance(encoded, str):
            return _of_data_uri(encoded, origin) if encoded[:5].lower() == "data:" else _decoded(encoded, origin)
    if not isinstance(image, str):
        raise DataError(
            f"{origin}: an image must be a path or an object with `path` or `bytes`, not {type(image).__name__}",
            fix='Write "cat.png", {"path": "cat.png"} or {"bytes": "<base64>"}.',
        )
    return resolve_image_path(image, folder, origin)


def _of_data_uri(text: str, origin: str) -> bytes:
    head, comma, content = text.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise DataError(
            f"{origin}: the image '{shown(text, 60)}' is a data URI without base64",
            fix="Write data:image/png;base64,<base64>.",
        )
    return _decoded(content, origin)


def _of_file_address(text: str, origin: str) -> str:
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise DataError(
            f"{origin}: the image '{shown(text, 80)}' is on another machine, {shown(parts.netloc)}",
            fix="Copy it here and write its path; file:///folder/cat.png has three slashes.",
        )
    return unquote(text[len("file://") + len(parts.netloc) :])


def _decoded(text: str, origin: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise DataError(
            f"{origin}: the `bytes` of an image are not base64", fix="Encode the file's bytes as base64."
        ) from None


def _bare_base64(text: str) -> bytes | None:
    """Return the image that a text is the base64 of, or None where it is a path."""
    compact = "".join(text[:_SHORTEST].split())
    if not _BASE64.fullmatch(compact):
        return None
    try:
        head = base64.b64decode(compact[: len(compact) // 4 * 4])
        return base64.b64decode("".join(text.split()), validate=True) if is_image(head) else None
    except (binascii.Error, ValueError):
        return None
