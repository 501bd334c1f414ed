"""``train.jsonl#100``: the first rows of a data file, as ms-swift writes it."""

from __future__ import annotations

from pathlib import Path

from vlm_lora_plugin.errors import DataError


def file_and_count(path: str | Path) -> tuple[Path, int | None]:
    """Return a data file and how many of its rows are meant, from the first; None for all.

    A file that has such a name itself is taken as it is.

    Raises:
        DataError: No rows are asked for.

    Example:
        >>> file_and_count("train.jsonl#100")
        (PosixPath('train.jsonl'), 100)
    """
    whole = Path(path)
    name, mark, count = whole.name.rpartition("#")
    if not mark or not name or not (count.isascii() and count.isdecimal()) or len(count) > 18 or whole.exists():
        return whole, None
    if int(count) == 0:
        raise DataError(f"{path} asks for no rows", fix="Write how many of the first rows are wanted after #.")
    return whole.with_name(name), int(count)


def enough(path: str | Path, count: int, rows: int) -> None:
    """Check that a file has as many rows as are asked for.

    Raises:
        DataError: It has fewer: ms-swift would repeat some, which no other framework does.
    """
    if count > rows:
        raise DataError(
            f"{path} asks for {count:,} rows, and the file has {rows:,}",
            why="No row is taken twice.",
            fix=f"Leave #{count} out.",
        )
