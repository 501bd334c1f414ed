"""What a data file is that is not JSONL or a JSON list, and how to make one of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora_plugin.errors import DataError, DocumentError, DuplicateKeyError
from vlm_lora_plugin.outside.display import shown
from vlm_lora_plugin.outside.files import MOST_BYTES, read_bytes
from vlm_lora_plugin.outside.json_text import parse_json
from vlm_lora_plugin.outside.kinds import is_image, is_utf16, kind_of

_TABLES = (".csv", ".tsv")
_UNPACK = {
    "a gzip file": "gunzip -k",
    "a bzip2 file": "bunzip2 -k",
    "an xz file": "unxz -k",
    "a Zstandard file": "unzstd",
}


def refuse_other_kinds(path: Path, head: bytes) -> None:
    """Refuse a data file in another form than JSON, by its first bytes.

    Args:
        path: The file.
        head: Its first 4,096 bytes, or all.

    Raises:
        DataError: Says what it is and how to make JSONL of it.
    """
    if head and not head.strip(b"\0"):
        raise DataError(
            f"{path} begins with {len(head):,} zero bytes",
            why="A copy or download of it was broken off, or the disk was full.",
            fix="Make the file anew.",
        )
    if is_utf16(head):
        raise DataError(
            f"{path} is text in UTF-16 or UTF-32, and JSON is read in UTF-8",
            fix=f"Convert it: iconv -f UTF-16 -t UTF-8 {shlex.quote(path.name)} > utf8.jsonl",
        )
    kind = kind_of(head) or ("an image" if is_image(head) else None)
    if kind in _UNPACK:
        raise DataError(
            f"{path} is {kind}", why="Rows are read from their place in the file.", fix=f"Unpack it: {_UNPACK[kind]}"
        )
    if kind == "a parquet file":
        code = f"pandas.read_parquet({path.name!r}).to_json('rows.jsonl', orient='records', lines=True)"
        raise DataError(f"{path} is {kind}, not JSONL", fix=f"Write its rows as JSONL; in Python: {code}")
    if kind:
        raise DataError(f"{path} is {kind}, not JSONL or JSON", fix="Give a file with one JSON object a line.")
    lines = [line.strip() for line in head.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    if lines and b"{" not in lines[0] and not any(line[:1] in b"{[" for line in lines):
        table = path.suffix.lower() in _TABLES or any(mark in lines[0] for mark in (b",", b"\t"))
        begin = shown(lines[0].decode("utf-8", "replace"), 60)
        raise DataError(
            f"{path} is {'a table (CSV or TSV)' if table else 'not JSON'}: it begins with '{begin}'",
            fix=f"Write one JSON object a line into {shlex.quote(path.stem)}.jsonl: "
            '{"messages": [{"role": "user", "content": "..."}, ...], "images": ["cat.png"]}',
        )


def refuse_one_object(path: Path, first: bytes) -> None:
    """Refuse a file that holds one JSON object over several lines; do nothing where it does not.

    Args:
        path: The file.
        first: Its first line that is not blank.

    Raises:
        DataError: Says how to make JSONL of it. Also where a key of it stands twice.
    """
    try:
        parse_json(first)
    except DuplicateKeyError:
        return
    except DocumentError:
        pass
    else:
        return
    try:
        document = parse_json(read_bytes(path, MOST_BYTES), levels=False)
    except DuplicateKeyError as error:
        raise DataError(f"{path}: {error.what}", fix="Leave one of the two.") from None
    except (OSError, DocumentError):
        return
    if isinstance(document, Mapping):
        raise DataError(f"{path} is one JSON object over several lines, not one a line", fix=to_lines(document, path))


def to_lines(document: Mapping[str, Any], path: Path | None = None) -> str:
    """Return the command that makes JSONL of a file with one object, which may hold the rows under a key."""
    keys = [key for key, value in document.items() if _is_rows(value)] if "messages" not in document else []
    name = "FILE" if path is None else shlex.quote(path.name)
    return (
        f"The rows stand in `{shown(keys[0])}`: jq -c '.[{_quoted(keys[0])}][]' {name} > rows.jsonl"
        if keys
        else (f"Write each object on one line: jq -c . {name} > rows.jsonl")
    )


def holds_rows(document: Mapping[str, Any]) -> bool:
    """Return whether an object is not a row but holds a list of them, such as ``{"data": [...]}``."""
    return any(_is_rows(value) for value in document.values())


def _is_rows(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, dict) and ("messages" in row or "conversations" in row) for row in value[:10])
    )


def _quoted(key: str) -> str:
    return '"' + shown(key).replace('"', '\\"').replace("'", "'\\''") + '"'
