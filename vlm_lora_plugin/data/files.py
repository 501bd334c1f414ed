"""A data file as a sequence of examples that are read when they are asked for."""

from __future__ import annotations

import hashlib
import logging
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from vlm_lora_plugin.contract.example import Example
from vlm_lora_plugin.data.file_kinds import refuse_one_object, refuse_other_kinds
from vlm_lora_plugin.data.reading import LIKE_THIS, RowFormat, parse_row, raise_for_rows
from vlm_lora_plugin.data.rows.rules import EVERYTHING, RowRules
from vlm_lora_plugin.errors import DataError, DocumentError
from vlm_lora_plugin.outside.files import open_file, reason, refuse_impossible
from vlm_lora_plugin.outside.json_text import parse_json

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Family

LARGE_LIST = 2**30
"""Bytes of a JSON list from which on a hint is given that JSONL would be read from disk instead."""

_logger = logging.getLogger(__name__)


class ExampleFile(Sequence[Example]):
    """The rows of a JSONL file, or of a JSON file that holds one list.

    A row of a JSONL file is read from disk each time it is asked for: memory holds 16 bytes a row, however
    long the rows are. A JSON list is held in memory as a whole; from 1 GiB on a warning says how to make JSONL of it.

    A row is ``{"messages": [{"role", "content"}...], "images": [...]}`` or ``{"query", "response", "history"}`` as
    ms-swift users have it, or a row of the family's own format (``DataFormats.parse_record``). An image is a path,
    ``{"path": ...}`` or ``{"bytes": base64}``; a relative path starts at the data file's folder. Where a row has images
    and no ``<image>`` mark, the marks are put in front of the first user message.

    Args:
        path: The file.
        family: Whose own format is tried on rows without ``messages``.
        allow_outside_images: Whether image files may lie outside ``folder``, links followed.
        folder: Where relative image paths start; None for the data file's folder.
        rules: What the recipe says about rows.

    Raises:
        DataError: The file is missing, empty, or no valid list. A row that is wrong raises it when it is read.
    """

    def __init__(
        self,
        path: str | Path,
        family: Family,
        *,
        allow_outside_images: bool = False,
        folder: Path | None = None,
        rules: RowRules = EVERYTHING,
    ) -> None:
        self.path = Path(path)
        self._format = RowFormat.of(family, rules)
        self._folder = folder or self.path.parent
        self._root = None if allow_outside_images else self._folder.resolve()
        self._items: list[object] | None = None
        self._offsets, self._lines = array("q"), array("q")
        try:
            refuse_impossible(self.path)
            self._state = self._stamp()
            self._index()
        except OSError as error:
            raise DataError(f"The data file {path} cannot be read: {reason(error)}", fix="Check the path.") from None
        if not self._offsets:
            raise DataError(f"{path} holds no rows", fix=f"Write one JSON object a line. {LIKE_THIS}")

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """Read one row, or several.

        Raises:
            DataError: The row is wrong, an image of it lies outside, or the file has changed since it was opened.
        """
        if isinstance(index, slice):
            return [self[position] for position in range(len(self))[index]]
        origin = self.origin(index)
        record = self._record(index, origin)
        example = parse_row(record, self._folder, origin, self._format)
        if self._root is not None:
            refuse_outside(example, self._root)
        return example

    def origin(self, index: int) -> str:
        """Return file and line of a row, ``data.jsonl:17``."""
        number = self._lines[index]
        return f"{self.path}:{number}" if self._items is None else f"{self.path} item {number}"

    @property
    def files(self) -> tuple[Path, ...]:
        """Every data file that rows come from."""
        return (self.path,)

    def keep(self, indices: Sequence[int]) -> None:
        """Leave only these rows, in this order."""
        self._offsets = array("q", (self._offsets[index] for index in indices))
        self._lines = array("q", (self._lines[index] for index in indices))

    def _index(self) -> None:
        with open_file(self.path) as stream:
            head = stream.read(4096)
            refuse_other_kinds(self.path, head)
            if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
                if self._state[0] > LARGE_LIST:
                    _logger.warning(
                        "%s is one JSON list of %.1f GiB, which is held in memory as a whole; as JSONL its rows are "
                        "read from disk when they are needed: jq -c '.[]' %s > %s",
                        self.path,
                        self._state[0] / 2**30,
                        self.path,
                        self.path.with_suffix(".jsonl"),
                    )
                stream.seek(0)
                self._items = _list_items(self.path, stream.read())
                self._offsets = array("q", range(len(self._items)))
                self._lines = array("q", range(1, len(self._items) + 1))
                return
            stream.seek(0)
            offset = 0
            for number, line in enumerate(stream, 1):
                if line.strip():
                    if not self._offsets:
                        refuse_one_object(self.path, line)
                    self._offsets.append(offset)
                    self._lines.append(number)
                offset += len(line)

    def _record(self, index: int, origin: str) -> object:
        if self._items is not None:
            return self._items[self._offsets[index]]
        try:
            if self._stamp() != self._state:
                raise DataError(
                    f"{self.path} has changed since it was opened",
                    why="Its lines are no longer where they were found.",
                    fix="Leave the data alone while it is in use, and start again.",
                )
            with open_file(self.path) as stream:
                stream.seek(self._offsets[index])
                line = stream.readline()
        except OSError as error:
            raise DataError(f"{origin}: the file cannot be read any more: {reason(error)}") from None
        try:
            return parse_json(line, levels=False)  # the row's levels are counted where it is parsed
        except DocumentError as error:
            raise DataError(f"{origin}: {error.what}", fix=LIKE_THIS) from None

    def _stamp(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns


def read_examples(
    path: str | Path, family: Family, *, allow_outside_images: bool = False, rules: RowRules = EVERYTHING
) -> list[Example]:
    """Read every row of a data file into memory; see :class:`ExampleFile`.

    Raises:
        DataError: The file is missing or empty, or rows are unusable; names the first of them with file and line.
    """
    file = ExampleFile(path, family, allow_outside_images=allow_outside_images, rules=rules)
    rows = list(_each(file))
    raise_for_rows([row for row in rows if isinstance(row, DataError)], len(rows))
    return [row for row in rows if isinstance(row, Example)]


def fingerprint(files: Iterable[Path]) -> tuple[int, str]:
    """Read files through and return their bytes in all, and the SHA-256 of one file after the other."""
    digest, size = hashlib.sha256(), 0
    for path in files:
        with open_file(path) as stream:
            while block := stream.read(2**20):
                digest.update(block)
                size += len(block)
    return size, digest.hexdigest()


def unreadable_rows(file: Sequence[Example]) -> dict[int, DataError]:
    """Return what is wrong with each row that cannot be read, by its index. Opens no image."""
    return {index: row for index, row in enumerate(_each(file)) if isinstance(row, DataError)}


def refuse_outside(example: Example, root: Path) -> None:
    """Refuse image files outside a folder, whether named by path or reached through a link.

    Args:
        example: The row.
        root: The resolved folder.

    Raises:
        DataError: Names row and file.
    """
    for image in example.images:
        if isinstance(image, bytes):
            continue
        real = Path(os.path.realpath(image))
        if not real.is_relative_to(root):
            via = f", a link to {real}," if Path(os.path.abspath(image)) != real else ""
            raise DataError(
                f"{example.origin}: the image {image}{via} lies outside the data file's folder {root}",
                why="A data file from elsewhere could name any file of this machine.",
                fix="If you trust the data: --allow-outside-images, or data.allow_outside_images: true in the recipe.",
            )


def _each(file: Sequence[Example]) -> Iterator[Example | DataError]:
    for index in range(len(file)):
        try:
            yield file[index]
        except DataError as error:
            yield error


def _list_items(file: Path, content: bytes) -> list[object]:
    try:
        items: list[object] = parse_json(content, levels=False)
    except DocumentError as error:
        raise DataError(f"{file}: {error.what}", fix=LIKE_THIS) from None
    return items
