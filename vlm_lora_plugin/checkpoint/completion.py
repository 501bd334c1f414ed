"""Whether a Trainer's checkpoint is whole: the completion record, and what becomes of folders without a valid one.

A Trainer writes ``checkpoint-N`` in place, file by file, and resumes from whichever folder has the highest
number, also an empty one. So a record that lists every file is written last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora_plugin.checkpoint.files import CHECKPOINT_NAME, COMPLETION, write_file
from vlm_lora_plugin.checkpoint.load import read_manifest
from vlm_lora_plugin.errors import CheckpointError
from vlm_lora_plugin.outside.json_text import read_json

FORMAT_VERSION = 1
INCOMPLETE_PREFIX = "incomplete-"
"""Put before the name of a folder that is set aside; the Trainer no longer takes it for a checkpoint."""


def record_completion(folder: str | os.PathLike[str], division: Mapping[str, int] | None = None) -> None:
    """Write the record that a checkpoint is complete; everything else must be in the folder already.

    It holds the manifest's digest, and every file with its size in bytes. All files are on the disk before
    it is, so that a power cut cannot leave a record of files that are not there.

    Args:
        folder: The checkpoint.
        division: How the job was divided among processes, to be read again by :func:`read_parallel_layout`.

    Raises:
        CheckpointError: The folder has no valid manifest.
    """
    path = Path(folder)
    (path / COMPLETION).unlink(missing_ok=True)
    digest = read_manifest(path).digest
    files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    for file in files.values():
        _flush(file)
    sizes = {name: file.stat().st_size for name, file in files.items()}
    document: dict[str, Any] = {"format_version": FORMAT_VERSION, "manifest_digest": digest, "files": sizes}
    if division is not None:
        document["division"] = dict(division)
    write_file(path / COMPLETION, (json.dumps(document, indent=2) + "\n").encode())
    _flush(path)


def read_parallel_layout(folder: str | os.PathLike[str]) -> dict[str, int] | None:
    """Return how the job of a complete checkpoint was divided among processes; None where its record does not say."""
    record = read_json(Path(folder) / COMPLETION)
    division: dict[str, int] | None = record.get("division")
    return division


def why_incomplete(folder: str | os.PathLike[str]) -> str | None:
    """Return what is wrong with a checkpoint in a few words, or None when it is complete."""
    path = Path(folder)
    if not (path / COMPLETION).is_file():
        return f"it has no {COMPLETION}, which is written last"
    try:
        record = read_json(path / COMPLETION)
        digest, sizes = _parsed(record)
        stored = read_manifest(path).digest
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {COMPLETION} cannot be read: {error!r}"
    except CheckpointError as error:
        return error.what
    if digest != stored:
        return "its manifest is not the one that it was completed with"
    for name, size in sizes.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        actual = (path / name).stat().st_size
        if actual != size:
            return f"{name} has {actual} bytes instead of {size}"
    return None


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the ``checkpoint-N`` folders of an output folder, the newest (the highest number) first."""
    path = Path(folder)
    if not path.is_dir():
        return []
    numbered = [
        (int(match[1]), entry)
        for entry in path.iterdir()
        if (match := CHECKPOINT_NAME.fullmatch(entry.name)) and entry.is_dir()
    ]
    return [entry for _, entry in sorted(numbered, reverse=True)]


def set_aside_incomplete(folder: str | os.PathLike[str]) -> dict[Path, str]:
    """Rename every incomplete ``checkpoint-N`` of an output folder to ``incomplete-checkpoint-N``.

    An earlier folder of that name is replaced. Complete checkpoints stay as they are.

    Returns:
        New path -> why it was set aside, the newest first.
    """
    found: dict[Path, str] = {}
    for path in checkpoints(folder):
        problem = why_incomplete(path)
        if problem is not None:
            aside = path.with_name(INCOMPLETE_PREFIX + path.name)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            found[aside] = problem
    return found


def check_complete(folder: str | os.PathLike[str]) -> None:
    """Refuse to resume from a checkpoint that is not complete.

    Raises:
        CheckpointError: It is not, or there is no such folder.
    """
    if not Path(folder).is_dir():
        there = ", ".join(path.name for path in reversed(checkpoints(Path(folder).parent))) or "none"
        raise CheckpointError(
            f"There is no checkpoint folder {folder}", fix=f"Give a checkpoint-N; in {Path(folder).parent}: {there}."
        )
    problem = why_incomplete(folder)
    if problem is not None:
        raise CheckpointError(
            f"{folder} is not complete: {problem}",
            why="Saving it was interrupted, or files were lost; resumed from, it would train something else.",
            fix="Use an earlier checkpoint; resume_from_checkpoint=True takes the newest complete one by itself.",
        )


def _parsed(record: Any) -> tuple[str, dict[str, int]]:
    if record["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {record['format_version']!r}")
    return str(record["manifest_digest"]), {str(name): int(size) for name, size in record["files"].items()}


def _flush(path: Path) -> None:
    """Have a file, or the names in a folder, reach the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders, and orders names by itself
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
