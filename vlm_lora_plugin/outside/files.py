"""Opening files that somebody else named: regular ones only, and without ever waiting for one.

What cannot be used is an ``OSError`` whose ``strerror`` says so in words, like every other reason why a file cannot
be read.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

MOST_BYTES = 64 * 2**20
"""Bytes of a document (a config, a manifest, a vocabulary) beyond which it is none. The largest published one, a
``tokenizer.json``, has 34 MB."""

# Non-blocking: opening a pipe that nobody writes to would wait for ever.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"))

_KINDS = (
    (stat.S_ISDIR, errno.EISDIR, "it is a folder"),
    (stat.S_ISFIFO, errno.EINVAL, "it is a pipe, which can be read only once; write what comes out of it into a file"),
    (stat.S_ISSOCK, errno.EINVAL, "it is a socket, not a file"),
    (stat.S_ISCHR, errno.EINVAL, "it is a device, not a file"),
    (stat.S_ISBLK, errno.EINVAL, "it is a device, not a file"),
)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, links followed.

    Raises:
        OSError: It cannot be opened, is a folder, pipe, socket or device, or its name is impossible.
    """
    refuse_impossible(path)
    _refuse_other_kinds(os.stat(path).st_mode, path)  # opening a device can act on it
    handle = os.open(path, _FLAGS)
    try:
        _refuse_other_kinds(os.fstat(handle).st_mode, path)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """Return a regular file's bytes.

    Args:
        path: The file.
        most: Bytes beyond which it is refused.

    Raises:
        OSError: As :func:`open_file`, or it is larger.
    """
    with open_file(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        text = f"it is larger than {most / 2**20:g} MiB, which no such file is"
        raise OSError(errno.EFBIG, text, os.fspath(path))
    return content


def read_text(path: str | os.PathLike[str], most: int = MOST_BYTES) -> str:
    """Return a regular file's text, in UTF-8; a byte-order mark in front is left out.

    Raises:
        OSError: As :func:`read_bytes`.
        UnicodeDecodeError: It is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8-sig")


def refuse_impossible(path: str | os.PathLike[str]) -> None:
    """Refuse a name that no file of this system can have.

    Raises:
        OSError: It holds a NUL character, or one that the file system's encoding lacks.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise OSError(errno.EINVAL, "its name holds a NUL character, which ends every file name", name)
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        text = f"its name holds {name[error.start]!a}, which file names cannot hold here"
        raise OSError(errno.EINVAL, text, name) from None


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a path names a regular file, impossible names included."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def why_unusable(path: str | os.PathLike[str]) -> str | None:
    """Return why a path does not name a readable regular file, or None where it does."""
    try:
        open_file(path).close()
    except OSError as error:
        return reason(error)
    return None


def odd_entry(folder: Path) -> tuple[Path, str] | None:
    """Return the first entry of a folder that is neither a file nor a folder, and what it is; None where there is none.

    For folders that libraries read, which open whatever has the right name.
    """
    for entry in sorted(folder.iterdir()):
        try:
            mode = entry.stat().st_mode
        except OSError:  # a link to nothing, which every reader reports for itself
            continue
        for is_kind, _, text in _KINDS[1:]:
            if is_kind(mode):
                return entry, text
    return None


def reason(error: Exception) -> str:
    """Return why a file or document cannot be read, without number and path: ``Permission denied``."""
    return (getattr(error, "strerror", None) if isinstance(error, OSError) else None) or str(error)


def _refuse_other_kinds(mode: int, path: str | os.PathLike[str]) -> None:
    for is_kind, number, text in _KINDS:
        if is_kind(mode):
            raise OSError(number, text, os.fspath(path))
