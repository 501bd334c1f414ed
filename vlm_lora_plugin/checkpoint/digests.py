"""SHA-256 of files, several at a time in threads: ``hashlib`` lets other threads run while it computes."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vlm_lora_plugin.outside.files import open_file
from vlm_lora_plugin.outside.json_text import read_json

_BUFFER = 2**20  # bytes read at a time
_THREADS = 8
_SETTLED = 2.0
"""Seconds after which a file's time of change tells it from a later version: clocks of file systems are coarse."""

_known: dict[tuple[int, int, int, int, int], str] = {}
"""What this process has read: device, inode, size, times of content and of change -> SHA-256."""


def sha256_of(content: bytes) -> str:
    """Return the SHA-256 of some bytes, as hex."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, as hex; a file that did not change since is not read again.

    Raises:
        OSError: It cannot be read.
    """
    now = time.time()
    with open_file(path) as file:
        stat = os.fstat(file.fileno())
        key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if key in _known:
            return _known[key]
        digest = hashlib.sha256()
        while part := file.read(_BUFFER):
            digest.update(part)
    found = digest.hexdigest()
    if now - stat.st_ctime > _SETTLED:
        _known[key] = found
    return found


def sha256_of_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return name -> SHA-256 of files in a folder, computed in threads.

    Raises:
        OSError: One cannot be read.
    """
    wanted = list(names)
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(wanted, pool.map(lambda name: sha256_of_file(folder / name), wanted), strict=True))


def changed_files(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """Return the names whose content is not what it was written with, missing files included, in the given order."""

    def differs(name: str) -> bool:
        try:
            return sha256_of_file(folder / name) != digests[name]
        except OSError:
            return True

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        wanted = list(digests)
        return [name for name, wrong in zip(wanted, pool.map(differs, wanted), strict=True) if wrong]


def why_unreadable(path: Path) -> str | None:
    """Return why a file without a digest cannot be what was written, by what its own format says; or None.

    ``torch.save`` writes zip archives, which hold a checksum of each part; JSON must parse.
    """
    try:
        if path.suffix == ".json":
            read_json(path)
        elif path.suffix in (".pt", ".pth"):
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            return None if broken is None else f"{broken} in it is damaged"
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        return f"it cannot be read: {error}"
    return None
