"""The completion record of a checkpoint: every file with size and SHA-256, and which of them a resume needs.

Version 1 knew sizes only; it is still read, and what a resume needs is told by the files' names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora_plugin.checkpoint.digests import changed_files, sha256_of, sha256_of_file, why_unreadable
from vlm_lora_plugin.checkpoint.files import COMPLETION, write_file
from vlm_lora_plugin.checkpoint.resume_state import resume_files
from vlm_lora_plugin.outside.json_text import read_json

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)

_WRITERS = 8  # files that are hashed and flushed to the disk at a time


@dataclass(frozen=True)
class FileRecord:
    """One file: its size in bytes, and the SHA-256 of its content as hex; None in records of version 1."""

    size: int
    sha256: str | None


@dataclass(frozen=True)
class CompletionRecord:
    """What a checkpoint was completed with.

    Attributes:
        version: Of the record's format.
        manifest_digest: Digest of the trainable set.
        files: Every file of the checkpoint but this record.
        resume: What a resume needs -> the files that hold it, see
            :func:`~vlm_lora_plugin.checkpoint.resume_state.resume_files`.
        division: How the job was divided among processes; None where nobody said.
    """

    version: int
    manifest_digest: str
    files: Mapping[str, FileRecord]
    resume: Mapping[str, list[str]]
    division: Mapping[str, int] | None = None

    def write(self, folder: Path) -> None:
        """Write it into a checkpoint, whole or not at all."""
        document: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "manifest_digest": self.manifest_digest,
            "files": {name: vars(file) for name, file in self.files.items()},
            "resume": dict(self.resume),
        }
        if self.division is not None:
            document["division"] = dict(self.division)
        document["digest"] = _digest(document)
        write_file(folder / COMPLETION, (json.dumps(document, indent=2) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> CompletionRecord:
        """Read what :meth:`write` wrote, or a record of version 1.

        Raises:
            OSError: It cannot be read.
            ValueError: It is not what was written; KeyError, TypeError and AttributeError mean the same.
        """
        document = read_json(folder / COMPLETION)
        version = document["format_version"]
        if version not in READABLE_VERSIONS:
            raise ValueError(f"format version {version!r}")
        if version == 1:
            files = {str(name): FileRecord(int(size), None) for name, size in document["files"].items()}
            return cls(1, str(document["manifest_digest"]), files, resume_files(files), document.get("division"))
        if document.pop("digest") != _digest(document):
            raise ValueError("it was changed after it was written")
        files = {name: FileRecord(**file) for name, file in document["files"].items()}
        return cls(2, document["manifest_digest"], files, document["resume"], document.get("division"))

    def changed(self, folder: Path) -> str | None:
        """Read every file and return which is not what was written, and why; None when all are."""
        known = {name: file.sha256 for name, file in self.files.items() if file.sha256 is not None}
        if known:
            wrong = changed_files(folder, known)
            return f"{', '.join(wrong)}: not what was written, by the SHA-256 in its {COMPLETION}" if wrong else None
        for name in self.files:
            problem = why_unreadable(folder / name)
            if problem is not None:
                return f"{name}: {problem}"
        return None


def recorded_files(folder: Path, known: Mapping[str, str]) -> dict[str, FileRecord]:
    """Return every file of a checkpoint with size and SHA-256, after all of it has reached the disk.

    Files are hashed in threads, each before it is flushed, so that computing goes on while the disk is waited for.

    Args:
        folder: The checkpoint.
        known: Name -> SHA-256 of files that were hashed when they were written.

    Raises:
        OSError: A file cannot be read.
    """
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]

    def recorded(name: str) -> FileRecord:
        path = folder / name
        found = FileRecord(path.stat().st_size, known.get(name) or sha256_of_file(path))
        flush(path)
        return found

    with ThreadPoolExecutor(min(_WRITERS, len(names) or 1)) as pool:
        return dict(zip(names, pool.map(recorded, names), strict=True))


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, reach the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders, and orders names by itself
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(document: Mapping[str, Any]) -> str:
    return sha256_of(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())
