"""A disk that is full, read-only or gone is an error that says so, with what is free and what was needed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm_lora_plugin.errors import OutputError, VlmLoraError

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_ANYWHERE = {
    **dict.fromkeys(_FULL, "there is no space left"),
    errno.EROFS: "it is on a file system that is read-only",
    errno.ENAMETOOLONG: "a name in it is too long for its file system",
    errno.EFBIG: "a file is larger than its file system, or a limit of this process, allows",
}
"""What has one cause alone, whatever file it was met at."""

_INSIDE = {
    errno.EACCES: "writing there is not allowed",
    errno.EPERM: "writing there is not allowed",
    errno.EIO: "its disk does not answer",
    errno.ENOENT: "it, or a part of it, was removed while it was written to",
    errno.ENOTDIR: "a folder in it was replaced by a file",
    getattr(errno, "ESTALE", errno.EIO): "it was removed on the server that it lies on",
}
"""What may come of any file; it counts where the file lies in the folder."""

_OF_RUST = re.compile(r"os error (\d+)")  # safetensors
_OF_TORCH = re.compile("PytorchStreamWriter|inline_container|iostream error|Parent directory .* does not exist")
_NOTHING = 2**20  # bytes: with less free, torch, which does not say why it could not write, met a full disk


@contextmanager
def writing(
    folder: str | os.PathLike[str], needed: int | None = None, *, then: str = "go on with --resume"
) -> Iterator[None]:
    """Raise what keeps a folder from being written to as an error that says so; other errors pass through.

    Args:
        folder: What is written to.
        needed: Bytes that are to be written, where that is known.
        then: What the user does once the cause is gone.

    Raises:
        OutputError: There is no space, the file system is read-only, a name is too long, or the folder is gone.
    """
    try:
        yield
    except VlmLoraError:
        raise
    except Exception as error:
        found = output_error(error, Path(folder), needed, then)
        if found is None:
            raise
        raise found from error


def output_error(error: Exception, folder: Path, needed: int | None, then: str) -> OutputError | None:
    """Return an error of the system, safetensors or torch as one about the folder; None where it is about else."""
    number = _number(error)
    free = free_bytes(folder)
    if number is None and _OF_TORCH.search(str(error)):
        number = errno.ENOSPC if free < max(_NOTHING, needed or 0) else errno.EIO
    cause = _ANYWHERE.get(number or 0) or (_INSIDE.get(number or 0) if _is_inside(error, folder) else None)
    if cause is None:
        return None
    space = f" ({in_words(free)} are free{f', {in_words(needed)} are needed' if needed else ''})"
    return OutputError(
        f"{folder} cannot be written to: {cause}{space if number in _FULL else ''}",
        why="Nothing was left half-written; what was complete before still is.",
        fix=f"Free space, then {then}." if number in _FULL else f"Mend that and {then}, or give another folder.",
    )


def free_bytes(folder: Path) -> int:
    """Return the bytes that this process may still write to a folder's file system; the folder need not exist yet."""
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return 0


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 where there is none."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else 0


def in_words(size: int) -> str:
    """Return a number of bytes in the unit that suits it: ``3.2 GiB``.

    Example:
        >>> in_words(3 * 2**29)
        '1.5 GiB'
    """
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


def _number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = _OF_RUST.search(str(error))
    return int(found[1]) if found else None


def _is_inside(error: Exception, folder: Path) -> bool:
    if not isinstance(error, OSError):
        return True  # only what writes raises these
    names = [name for name in (error.filename, error.filename2) if isinstance(name, (str, os.PathLike))]
    place = folder.absolute()
    return any(place in (Path(name).absolute(), *Path(name).absolute().parents) for name in names)
