"""The rows of a data set that cost the most memory, found from lengths and headers of images alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vlm_lora_plugin.data.survey import RowFacts


@dataclass(frozen=True)
class CostlyBatch:
    """A batch of rows that may cost the most.

    Attributes:
        reason: Why it may: ``the most tokens``.
        indices: Which rows, the costliest first.
        origins: Their files and lines.
        tokens: Length of its longest row.
        images: Images in it.
        supervised: Tokens in it that have a label.
    """

    reason: str
    indices: tuple[int, ...]
    origins: tuple[str, ...]
    tokens: int
    images: int
    supervised: int


def costly_batches(rows: Iterable[object], size: int) -> list[CostlyBatch]:
    """Return the batches that may cost the most: no other one exceeds them in all of what memory grows with.

    Memory grows with the padded length, with the pixels of the images, and with the positions that have a label, each
    by itself; so the batches with the most of each are tried.

    Args:
        rows: What :func:`vlm_lora_plugin.data.survey.survey` yields; rows that cannot be used are left out.
        size: Rows of a batch.
    """
    usable = [(index, row) for index, row in enumerate(rows) if isinstance(row, RowFacts)]
    measures = (
        ("the most tokens", lambda row: (row.tokens, _pixels(row), row.supervised)),
        ("the largest images", lambda row: (len(row.image_sizes), _pixels(row), row.tokens, row.supervised)),
        ("the most tokens with a label", lambda row: (row.supervised, row.tokens, _pixels(row))),
    )
    found: dict[tuple[int, ...], CostlyBatch] = {}
    for reason, measure in measures:
        chosen = sorted(usable, key=lambda item: measure(item[1]), reverse=True)[:size]
        indices = tuple(index for index, _ in chosen)
        if indices and frozenset(indices) not in map(frozenset, found):
            found[indices] = _batch(reason, indices, [row for _, row in chosen])
    return list(found.values())


def _batch(reason: str, indices: tuple[int, ...], rows: Sequence[RowFacts]) -> CostlyBatch:
    return CostlyBatch(
        reason,
        indices,
        tuple(row.origin for row in rows),
        max(row.tokens for row in rows),
        sum(len(row.image_sizes) for row in rows),
        sum(row.supervised for row in rows),
    )


def _pixels(row: RowFacts) -> int:
    return sum(width * height for width, height in row.image_sizes)
