"""What a data file holds for a model, row by row, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_lora_plugin.data.mixture import open_examples
from vlm_lora_plugin.data.rows.rules import RowRules
from vlm_lora_plugin.data.statistics import DataSurvey
from vlm_lora_plugin.data.survey import survey
from vlm_lora_plugin.loading import load_processor

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.job.preflight import Checking
    from vlm_lora_plugin.recipe import Recipe

_POINTS = {"min": 0, "median": 50, "p95": 95, "max": 100}


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where it stands, what is wrong with it, and what to do."""

    row: str
    problem: str
    fix: str


@dataclass(frozen=True)
class DataReport:
    """What was found.

    Attributes:
        data: The data file.
        max_length: Tokens that a row may have.
        survey: The numbers of every row and image.
        bad: The rows that cannot be used.
        exif_transpose: Whether images are turned as their EXIF data say.
    """

    data: Path
    max_length: int
    survey: DataSurvey
    bad: tuple[BadRow, ...]
    exif_transpose: bool = False

    def document(self) -> dict[str, Any]:
        """Return it as plain data, ready for JSON; lengths in tokens, sizes in pixels."""
        found = self.survey
        return {
            "data": str(self.data),
            "rows": found.rows,
            "usable_rows": len(found.tokens),
            "max_length": self.max_length,
            "truncated_rows": found.truncated,
            "tokens": spread(found.tokens),
            "supervised_tokens": spread(found.supervised),
            "longest_row": found.longest_origin or None,
            "images": len(found.widths),
            "image_width": spread(found.widths),
            "image_height": spread(found.heights),
            "animated_images": found.animated,
            "exif_turned_images": found.turned,
            "transparent_images": found.transparent,
            "keys_passed_over": dict(sorted(found.passed_over.items())),
            "bad_rows": [vars(row) for row in self.bad],
        }

    def peculiar(self) -> list[str]:
        """Return a line about images that are seen in part, or otherwise than a viewer shows them."""
        found = self.survey
        turned = (
            "they are turned, as data.exif_transpose says"
            if self.exif_transpose
            else "they are seen as stored; data.exif_transpose: true turns them"
        )
        lines = (
            (found.animated, "several frames or pages", "the first one is seen"),
            (found.turned, "EXIF data that say to turn them", turned),
            (
                found.transparent,
                "an alpha channel",
                "it is dropped: what is transparent shows the colour stored below it",
            ),
        )
        return [
            f"{count:,} of {len(found.widths):,} images have {what}: {then}" for count, what, then in lines if count
        ]


def spread(values: Sequence[int]) -> dict[str, float] | None:
    """Return minimum, median, 95 %, maximum, mean and total of some numbers; None when there are none."""
    if not len(values):
        return None
    points = {name: float(np.percentile(values, share)) for name, share in _POINTS.items()}
    return {**points, "mean": float(np.mean(values)), "total": float(np.sum(values, dtype=np.int64))}


def check_data(
    model: Path,
    data: Path,
    family: Family,
    recipe: Recipe,
    *,
    decode: bool = True,
    checking: Checking = lambda name, rows: nullcontext(),
) -> DataReport:
    """Look at every row of a data file as training on it would.

    Args:
        model: The model folder; its weights are not read.
        data: The data file.
        family: Whose model it is.
        recipe: The resolved recipe; its ``data`` settings apply.
        decode: Decode every image rather than read its header alone.
        checking: Shows progress; nothing by default.

    Raises:
        ModelError: The model's processor cannot be loaded.
        DataError: The file cannot be read at all.
    """
    settings = recipe.data
    processor = load_processor(model, recipe)
    examples = open_examples(
        data,
        family,
        allow_outside_images=settings.allow_outside_images,
        seed=recipe.seed,
        rules=RowRules.of(settings),
    )
    with checking(data.name, len(examples)) as progress:
        found = DataSurvey().add(survey(examples, processor, settings, decode=decode), progress)
    bad = tuple(
        BadRow(examples.origin(index), error.what.removeprefix(f"{examples.origin(index)}: "), error.fix)
        for index, error in found.bad.items()
    )
    return DataReport(data, settings.max_length, found, bad, settings.exif_transpose)
