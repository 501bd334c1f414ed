"""What can be known about the data before the first step: that each row fits, and how much there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_lora_plugin.data.collation import IGNORE_INDEX
from vlm_lora_plugin.data.images import open_image
from vlm_lora_plugin.data.reading import raise_for_rows
from vlm_lora_plugin.errors import DataError

if TYPE_CHECKING:
    from vlm_lora_plugin.data.example import Example
    from vlm_lora_plugin.recipe import DataSettings
    from vlm_lora_plugin.types import Processor


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
    """

    rows: int
    images: int
    tokens: int
    longest: int
    supervised_tokens: int
    truncated: int

    @property
    def mean_tokens(self) -> float:
        """Tokens of the average row."""
        return self.tokens / self.rows


def check_examples(examples: Sequence[Example], processor: Processor, settings: DataSettings) -> DataStatistics:
    """Check every row without decoding pixels: turns, marks, length, and that each image opens.

    Only an image's header is read, except in rows that are to be truncated: those are encoded as in training.

    Args:
        examples: The rows; not empty.
        processor: Counts their tokens.
        settings: Length limit and what happens beyond it.

    Raises:
        DataError: Names the first unusable rows with file and line, and their number.
    """
    problems: list[DataError] = []
    lengths: list[int] = []
    supervised = truncated = 0
    for example in examples:
        try:
            for image in example.images:
                with open_image(image, origin=example.origin):
                    pass
            length, learnt = processor.count_tokens(example)
            if length > settings.max_length:
                # Raises what training would raise: too long, an image cut, no answer left.
                row = processor.encode(
                    example, max_length=settings.max_length, truncation_strategy=settings.truncation_strategy
                )
                length, learnt = len(row["labels"]), int((row["labels"] != IGNORE_INDEX).sum())
                truncated += 1
        except DataError as error:
            problems.append(error)
            continue
        lengths.append(length)
        supervised += learnt
    raise_for_rows(problems, len(examples))
    return DataStatistics(
        rows=len(examples),
        images=sum(len(example.images) for example in examples),
        tokens=sum(lengths),
        longest=max(lengths),
        supervised_tokens=supervised,
        truncated=truncated,
    )
