"""Whether a finished job's folder holds all that it must: something else may have changed it while the job ran."""

from __future__ import annotations

from pathlib import Path

from vlm_lora_plugin.checkpoint.completion import why_incomplete
from vlm_lora_plugin.checkpoint.digests import changed_files
from vlm_lora_plugin.checkpoint.manifest_file import read_manifest
from vlm_lora_plugin.checkpoint.output import OutputFolder
from vlm_lora_plugin.errors import CheckpointError, OutputError, listed
from vlm_lora_plugin.outside.files import read_text
from vlm_lora_plugin.outside.json_text import parse_json


def check_finished(output: OutputFolder, written: dict[Path, str | None], last_checkpoint: int | None) -> None:
    """Check that every file of a finished job is there and is what was written.

    Args:
        output: The job's folder.
        written: Files -> the text that each was written with; None where any text will do.
        last_checkpoint: The step whose checkpoint must be complete; None where the job writes none.

    Raises:
        OutputError: Names what is missing or changed.
    """
    wrong = [problem for path, text in written.items() if (problem := _problem(path, text))]
    wrong += [f"{path.name} is missing" for path in (*output.pictures, output.log) if not path.is_file()]
    if output.log.is_file():
        wrong += _log_problems(output.log)
    wrong += _adapter_problems(output.adapter)
    if last_checkpoint is not None:
        path = output.checkpoints / f"checkpoint-{last_checkpoint}"
        problem = why_incomplete(path, contents=False)
        if problem is not None:
            wrong.append(f"{path.parent.name}/{path.name}: {problem}")
    if wrong:
        raise OutputError(
            f"{output.folder} does not hold what the finished job wrote: {listed(wrong)}",
            why="Something else changed the folder while the job ran, so that its results are not whole.",
            fix="Give the job a folder of its own and train again; from a complete checkpoint --resume goes on.",
        )


def _problem(path: Path, text: str | None) -> str | None:
    try:
        found = read_text(path)
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, ValueError) as error:
        return f"{path.name} cannot be read: {error}"
    return None if text in (None, found) else f"{path.name} is not what was written"


def _log_problems(log: Path) -> list[str]:
    try:
        for line in read_text(log).splitlines():
            parse_json(line)
    except (OSError, ValueError) as error:
        return [f"{log.name} cannot be read: {error}"]
    return []


def _adapter_problems(adapter: Path) -> list[str]:
    try:
        files = read_manifest(adapter).files or {}
    except CheckpointError as error:
        return [error.what]
    return [f"{adapter.name}/{name} is missing or changed" for name in changed_files(adapter, files)]
