"""What can be known about the data before the first step: that each row fits, and how much there is."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlm_lora_plugin.data.reading import raise_for_rows
from vlm_lora_plugin.data.survey import RowFacts, survey
from vlm_lora_plugin.errors import DataError

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Processor
    from vlm_lora_plugin.contract.example import Example
    from vlm_lora_plugin.recipe import DataSettings

Progress = Callable[[int], None]
"""Called with the number of rows done so far."""


@dataclass(frozen=True)
class DataStatistics:
    """How much there is to train on, after truncation.

    Attributes:
        rows: Number of examples.
        images: Number of images.
        tokens: Tokens of all rows, image positions included.
        longest: Tokens of the longest row.
        supervised_tokens: Tokens that are learnt from.
        truncated: Rows whose end is cut off.
        skipped: Rows left out because they cannot be used.
        longest_origin: File and line of the longest row.
    """

    rows: int
    images: int
    tokens: int
    longest: int
    supervised_tokens: int
    truncated: int
    skipped: int = 0
    longest_origin: str = ""

    @property
    def mean_tokens(self) -> float:
        """Tokens of the average row."""
        return self.tokens / self.rows


@dataclass
class DataSurvey:
    """Every row's numbers, 8 bytes a row and 8 an image, and what is wrong with the unusable ones.

    Attributes:
        tokens: Of each usable row, image positions included.
        supervised: Of each usable row, tokens that are learnt from.
        widths: Of each image, in pixels.
        heights: Of each image, in pixels.
        truncated: Rows whose end is cut off.
        animated: Images of several frames or pages.
        turned: Images that their EXIF data say to turn.
        transparent: Images with an alpha channel or a transparent colour.
        longest_origin: File and line of the longest row, the first one of that length.
        passed_over: In how many usable rows a key stands that changes nothing, by key: ``id``, ``messages.id``.
        bad: What is wrong, by the row's index.
    """

    tokens: array[int] = field(default_factory=lambda: array("I"))
    supervised: array[int] = field(default_factory=lambda: array("I"))
    widths: array[int] = field(default_factory=lambda: array("I"))
    heights: array[int] = field(default_factory=lambda: array("I"))
    truncated: int = 0
    animated: int = 0
    turned: int = 0
    transparent: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    longest_origin: str = ""
    _longest: int = -1
    bad: dict[int, DataError] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows looked at."""
        return len(self.tokens) + len(self.bad)

    def add(self, rows: Iterable[RowFacts | DataError], progress: Progress | None = None) -> DataSurvey:
        """Take up rows, and return this survey."""
        for row in rows:
            if isinstance(row, DataError):
                self.bad[self.rows] = row
            else:
                if row.tokens > self._longest:
                    self._longest, self.longest_origin = row.tokens, row.origin
                self.tokens.append(row.tokens)
                self.supervised.append(row.supervised)
                self.truncated += row.truncated
                self.passed_over.update(row.passed_over)
                for width, height in row.image_sizes:
                    self.widths.append(width)
                    self.heights.append(height)
                for image in row.peculiarities:
                    self.animated += image.animated
                    self.turned += image.turned
                    self.transparent += image.transparent
            if progress is not None:
                progress(self.rows)
        return self

    def statistics(self, *, skipped: int = 0) -> DataStatistics:
        """Return the totals of the usable rows.

        Raises:
            DataError: Not one row can be used.
        """
        if not self.tokens:
            raise_for_rows(list(self.bad.values()), self.rows)
        return DataStatistics(
            rows=len(self.tokens),
            images=len(self.widths),
            tokens=sum(self.tokens),
            longest=max(self.tokens),
            longest_origin=self.longest_origin,
            supervised_tokens=sum(self.supervised),
            truncated=self.truncated,
            skipped=skipped,
        )


def check_examples(examples: Sequence[Example], processor: Processor, settings: DataSettings) -> DataStatistics:
    """Check every row without decoding pixels; see :func:`vlm_lora_plugin.data.survey.survey`.

    Args:
        examples: The rows; not empty.
        processor: Counts their tokens.
        settings: Limits of length and image size, and what happens beyond them.

    Raises:
        DataError: Names the first unusable rows with file and line, and their number.
    """
    found = DataSurvey().add(survey(examples, processor, settings))
    raise_for_rows(list(found.bad.values()), len(examples))
    return found.statistics()
