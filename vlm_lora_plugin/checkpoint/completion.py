"""Whether a Trainer's checkpoint is whole: the completion record, and what becomes of folders without a valid one.

A Trainer writes ``checkpoint-N`` in place, file by file, and resumes from whichever folder has the highest
number, also an empty one. So a record that lists every file is written last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from vlm_lora_plugin.checkpoint.files import CHECKPOINT_NAME, COMPLETION
from vlm_lora_plugin.checkpoint.lock import check_still_held
from vlm_lora_plugin.checkpoint.manifest_file import read_manifest
from vlm_lora_plugin.checkpoint.record import FORMAT_VERSION, CompletionRecord, flush, recorded_files
from vlm_lora_plugin.checkpoint.resume_state import lacking, resume_files
from vlm_lora_plugin.errors import CheckpointError

INCOMPLETE_PREFIX = "incomplete-"
"""Put before the name of a folder that is set aside; the Trainer no longer takes it for a checkpoint."""


def record_completion(folder: str | os.PathLike[str], division: Mapping[str, int] | None = None) -> CompletionRecord:
    """Write the record that a checkpoint is complete; everything else must be in the folder already.

    It holds the manifest's digest, every file with its size in bytes and its SHA-256, and which of them a resume
    needs. All files are on the disk before it is, so that a power cut cannot leave a record of files that are not
    there. What :func:`~vlm_lora_plugin.checkpoint.save.save_adapter` wrote was hashed then and is not read again.

    Args:
        folder: The checkpoint.
        division: How the job was divided among processes, to be read again by :func:`read_parallel_layout`.

    Raises:
        CheckpointError: The folder has no valid manifest.
    """
    path = Path(folder)
    (path / COMPLETION).unlink(missing_ok=True)
    manifest = read_manifest(path)
    files = recorded_files(path, manifest.files or {})
    record = CompletionRecord(FORMAT_VERSION, manifest.digest, files, resume_files(files), division)
    record.write(path)
    flush(path)
    return record


def read_parallel_layout(folder: str | os.PathLike[str]) -> dict[str, int] | None:
    """Return how the job of a complete checkpoint was divided among processes; None where its record does not say."""
    division = CompletionRecord.read(Path(folder)).division
    return None if division is None else dict(division)


def why_incomplete(folder: str | os.PathLike[str], *, contents: bool = True) -> str | None:
    """Return what is wrong with a checkpoint in a few words, or None when it is complete.

    Args:
        folder: The checkpoint.
        contents: Read every file and compare it with the digest in the record; False compares sizes alone.
    """
    path = Path(folder)
    if not (path / COMPLETION).is_file():
        return f"it has no {COMPLETION}, which is written last"
    try:
        record = CompletionRecord.read(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {COMPLETION} cannot be read: {error!r}"
    for name, file in record.files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        actual = (path / name).stat().st_size
        if actual != file.size:
            return f"{name} has {actual} bytes instead of {file.size}"
    try:
        if record.manifest_digest != read_manifest(path).digest:
            return "its manifest is not the one that it was completed with"
    except CheckpointError as error:
        return error.what
    return record.changed(path) if contents else None


def why_not_resumable(folder: str | os.PathLike[str]) -> str | None:
    """Return why a complete checkpoint can be loaded and merged, but not resumed from; or None."""
    missing = lacking(CompletionRecord.read(Path(folder)).resume)
    return f"it holds no {' and no '.join(missing)}" if missing else None


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

    An earlier folder of that name is replaced. Complete checkpoints stay as they are. Files are read from the newest
    checkpoint down to the first that is complete; of older ones, which nothing goes on from, sizes are compared.

    Returns:
        New path -> why it was set aside, the newest first.
    """
    check_still_held(folder)
    found: dict[Path, str] = {}
    complete = False
    for path in checkpoints(folder):
        problem = why_incomplete(path, contents=not complete)
        if problem is None:
            complete = True
        else:
            found[set_aside(path)] = problem
    return found


def set_aside(path: Path) -> Path:
    """Rename a checkpoint so that nothing goes on from it, and return its new path; an earlier one is replaced."""
    aside = path.with_name(INCOMPLETE_PREFIX + path.name)
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    return aside


def check_resumable(folder: str | os.PathLike[str]) -> None:
    """Refuse to resume from a complete checkpoint that holds what was trained and nothing else.

    Raises:
        CheckpointError: Names what it lacks.
    """
    problem = why_not_resumable(folder)
    if problem is not None:
        raise CheckpointError(
            f"{folder} cannot be resumed from: {problem}",
            why="It was saved with save_only_model. Without these the run would go on, and come to another result.",
            fix="Resume from a checkpoint that has them, by its name; or start anew from this one's weights: "
            "model.load_adapter(checkpoint, is_trainable=True), and train() without resume_from_checkpoint.",
        )


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
            why="Saving it was interrupted, or files were lost or damaged; it would train something else.",
            fix="Use an earlier checkpoint; resume_from_checkpoint=True takes the newest complete one by itself.",
        )
