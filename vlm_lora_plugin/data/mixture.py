"""Several data files trained on together, each with its share of an epoch."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from vlm_lora_plugin.contract.example import Example
from vlm_lora_plugin.data.files import ExampleFile
from vlm_lora_plugin.data.first_rows import enough, file_and_count
from vlm_lora_plugin.data.rows.rules import EVERYTHING, RowRules
from vlm_lora_plugin.errors import DataError
from vlm_lora_plugin.plugins.manager import get_manager

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Family, MixturePart


class ExampleMixture(Sequence[Example]):
    """The rows of several data files, drawn once: of each as many as the mixture says.

    Up to a file's size its rows are drawn without repetition; beyond, each comes once and the rest is drawn with
    repetition. The draw depends on the seed and the place of a file in the mixture alone. Relative image paths start
    at the mixture's folder.

    Args:
        path: The mixture.
        parts: What it says.
        family: Whose own row format is read too.
        allow_outside_images: Whether image files may lie outside the mixture's folder, links followed.
        seed: Of the draw.
        rules: What the recipe says about rows.

    Raises:
        DataError: A data file is missing, empty, or no valid list; names the mixture's line.
    """

    def __init__(
        self,
        path: Path,
        parts: Sequence[MixturePart],
        family: Family,
        *,
        allow_outside_images: bool = False,
        seed: int = 42,
        rules: RowRules = EVERYTHING,
    ) -> None:
        self.path = path
        self._parts: list[ExampleFile] = []
        self._part_of, self._row_of = array("I"), array("q")
        for number, part in enumerate(parts):
            try:
                file = ExampleFile(
                    part.file, family, allow_outside_images=allow_outside_images, folder=path.parent, rules=rules
                )
            except DataError as error:
                raise DataError(f"{part.origin}: {error.what}", why=error.why, fix=error.fix) from None
            draw, rows = random.Random(f"{seed} {number}"), range(len(file))
            drawn = draw.sample(rows, part.rows) if part.rows <= len(rows) else [*rows]
            drawn += draw.choices(rows, k=part.rows - len(drawn))
            self._parts.append(file)
            self._part_of.extend([number] * len(drawn))
            self._row_of.extend(drawn)

    def __len__(self) -> int:
        return len(self._row_of)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """Read one row, or several; raises DataError like :class:`~vlm_lora_plugin.data.files.ExampleFile`."""
        if isinstance(index, slice):
            return [self[position] for position in range(len(self))[index]]
        return self._parts[self._part_of[index]][self._row_of[index]]

    def origin(self, index: int) -> str:
        """Return data file and line of a row."""
        return self._parts[self._part_of[index]].origin(self._row_of[index])

    @property
    def files(self) -> tuple[Path, ...]:
        """The mixture, and every data file that rows come from."""
        return (self.path, *(part.path for part in self._parts))

    def keep(self, indices: Sequence[int]) -> None:
        """Leave only these rows, in this order."""
        self._part_of = array("I", (self._part_of[index] for index in indices))
        self._row_of = array("q", (self._row_of[index] for index in indices))


def open_examples(
    path: str | Path,
    family: Family,
    *,
    allow_outside_images: bool = False,
    seed: int = 42,
    rules: RowRules = EVERYTHING,
) -> ExampleFile | ExampleMixture:
    """Open a data file, or a mixture in the family's own form.

    Args:
        path: The file; ``train.jsonl#100`` for its first hundred rows.
        family: Whose forms of rows and mixtures are read.
        allow_outside_images: Whether image files may lie outside the file's folder, links followed.
        seed: Of the draw of rows from a mixture.
        rules: What the recipe says about rows.

    Raises:
        DataError: The file is missing, empty, or in no known form.
    """
    file, count = file_and_count(path)
    parts = mixture_parts(file, family)
    examples: ExampleFile | ExampleMixture
    if parts is None:
        examples = ExampleFile(file, family, allow_outside_images=allow_outside_images, rules=rules)
    else:
        examples = ExampleMixture(
            file, parts, family, allow_outside_images=allow_outside_images, seed=seed, rules=rules
        )
    if count is not None:
        enough(path, count, len(examples))
        examples.keep(range(count))
    return examples


def mixture_parts(path: str | Path, family: Family) -> Sequence[MixturePart] | None:
    """Return the parts of a mixture in the family's own form, or None where a file is not one.

    Raises:
        DataError: It is one, and wrong.
    """
    read = family.data_formats.read_mixture
    return None if read is None else get_manager().function(family, read)(Path(path))
