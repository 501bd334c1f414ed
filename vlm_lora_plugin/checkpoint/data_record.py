"""Which data a job was started with, so that it is resumed with the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

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


def to_json(records: Mapping[str, DataRecord]) -> str:
    """Return the records, by the name of the data set, as they lie in the output folder."""
    return json.dumps({name: asdict(record) for name, record in records.items()}, indent=2) + "\n"


def check_same_data(output: OutputFolder, records: Mapping[str, DataRecord]) -> None:
    """Refuse to go on with other data than a job was started with.

    Raises:
        OutputError: The job's record is missing or broken, or tells of other data; shows both.
    """
    try:
        kept = read_json(output.data)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{output.data}, which tells what data the job was started with, cannot be read: {reason(error)}",
            why="With other data it would come to a result that no data describes.",
            fix="Start it anew with --overwrite.",
        ) from None
    found = differences(kept, {name: asdict(record) for name, record in records.items()})
    if found:
        raise OutputError(
            f"The data is not that of the job in {output.folder} (job / given): {listed(found)}",
            why="The Trainer would pass over as many rows as were seen, which now are others.",
            fix="Give the same files to --data and --val-data as then, or start a new job in another folder.",
        )
