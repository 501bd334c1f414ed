"""Which data, and which model, a job was started with, so that it is resumed with the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm_lora_plugin.checkpoint.output import OutputFolder
from vlm_lora_plugin.documents import differences
from vlm_lora_plugin.errors import OutputError, listed
from vlm_lora_plugin.outside.files import reason
from vlm_lora_plugin.outside.json_text import read_json


@dataclass(frozen=True)
class DataRecord:
    """One data file, or a mixture and all its files. The images that rows name are not part of it.

    Attributes:
        rows: Rows that are used; those that were left out do not count.
        size: Bytes of all files.
        sha256: Of the files' bytes, one file after the other.
    """

    rows: int
    size: int
    sha256: str


PATH = "path"
"""Where a data file lay when the job was started: it may lie elsewhere when it is resumed."""


MODEL = "model"
"""Beside the data sets: the model folder, of which the path alone is kept. What it holds, the manifest compares."""


def to_json(records: Mapping[str, DataRecord], files: Mapping[str, Path], model: Path) -> str:
    """Return the records, by the name of the data set, as they lie in the output folder.

    Args:
        records: What the files are.
        files: Where they are.
        model: The model folder.
    """
    document: dict[str, dict[str, Any]] = {
        name: {PATH: str(files[name].absolute()), **asdict(record)} for name, record in records.items()
    }
    document[MODEL] = {PATH: str(model.absolute())}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def recorded_files(output: OutputFolder) -> dict[str, Path]:
    """Return where the data files of a job lay when it was started, by the name of the data set.

    Raises:
        OutputError: The job's record is missing or broken, or does not say; or a file is no longer there.
    """
    kept = _sets(output)
    files = {name: Path(record[PATH]) for name, record in kept.items() if PATH in record}
    if files.keys() != kept.keys():
        raise OutputError(
            f"{output.data} does not say where the job's data lies: it was written by an earlier version",
            fix="Give --data, and --val-data where the job had any.",
        )
    gone = [str(file) for file in files.values() if not file.is_file()]
    if gone:
        raise OutputError(
            f"The data that the job in {output.folder} was started with is no longer there: {listed(gone)}",
            fix="Give --data, and --val-data where the job had any: the same files, where they lie now.",
        )
    return files


def recorded_model(output: OutputFolder) -> Path:
    """Return where the model folder of a job lay when it was started.

    Raises:
        OutputError: The job's record is missing or broken, or does not say; or the folder is no longer there.
    """
    kept = _read(output).get(MODEL, {})
    if PATH not in kept:
        raise OutputError(
            f"{output.data} does not say which model the job trains: it was written by an earlier version",
            fix="Give the model folder: vlm-lora train MODEL --resume ...",
        )
    folder = Path(kept[PATH])
    if not folder.is_dir():
        raise OutputError(
            f"The model folder that the job in {output.folder} was started with is no longer there: {folder}",
            fix="Give the model folder, where it lies now: vlm-lora train MODEL --resume ...",
        )
    return folder


def _sets(output: OutputFolder) -> dict[str, dict[str, Any]]:
    """Return the records of the data alone."""
    return {name: record for name, record in _read(output).items() if name != MODEL}


def _read(output: OutputFolder) -> dict[str, dict[str, Any]]:
    try:
        kept = read_json(output.data)
        return {str(name): dict(record) for name, record in kept.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{output.data}, which tells what data the job was started with, cannot be read: {reason(error)}",
            why="With other data it would come to a result that no data describes.",
            fix="Start it anew with --overwrite.",
        ) from None


def check_same_data(output: OutputFolder, records: Mapping[str, DataRecord]) -> None:
    """Refuse to go on with other data than a job was started with.

    Raises:
        OutputError: The job's record is missing or broken, or tells of other data; shows both.
    """
    kept = {
        name: {key: value for key, value in record.items() if key != PATH} for name, record in _sets(output).items()
    }
    found = differences(kept, {name: asdict(record) for name, record in records.items()})
    if found:
        raise OutputError(
            f"The data is not that of the job in {output.folder} (job / given): {listed(found)}",
            why="The Trainer would pass over as many rows as were seen, which now are others.",
            fix="Give the same files to --data and --val-data as then, or start a new job in another folder.",
        )
