"""Looking at every row of a data set before training: what it holds, and which rows cannot be used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

from vlm_lora_plugin.contract import MeasuringProcessor
from vlm_lora_plugin.data.collation import IGNORE_INDEX
from vlm_lora_plugin.data.images import Peculiarities, open_image, peculiarities, turned_size
from vlm_lora_plugin.errors import AdapterError, DataError
from vlm_lora_plugin.parallel.agreement import gathered_on_node, ranks_of_this_node

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Processor
    from vlm_lora_plugin.contract.example import Example
    from vlm_lora_plugin.recipe import DataSettings

_CHUNK = 64  # rows whose images are opened at a time; bounds what waits in memory


@dataclass(frozen=True)
class RowFacts:
    """One usable row.

    Attributes:
        origin: Its file and line.
        tokens: Its length, image positions included, after truncation.
        supervised: Tokens that are learnt from.
        truncated: Whether its end is cut off.
        image_sizes: (width, height) in pixels of each image.
        peculiarities: Of each image, what of it is not seen or seen otherwise than in a viewer.
        passed_over: Keys of it that change nothing.
    """

    origin: str
    tokens: int
    supervised: int
    truncated: bool
    image_sizes: tuple[tuple[int, int], ...]
    peculiarities: tuple[Peculiarities, ...] = ()
    passed_over: tuple[str, ...] = ()


def survey(
    examples: Sequence[Example], processor: Processor, settings: DataSettings, *, decode: bool = False
) -> Iterator[RowFacts | DataError]:
    """Look at each row in turn: turns, marks, length, and that each image opens and is not too large.

    Args:
        examples: The rows; reading one may raise a DataError, which counts as its answer.
        processor: Counts their tokens.
        settings: Limits of length and image size, and what happens beyond them.
        decode: Decode every image, several at a time. If not, only headers are read; but of a processor that is no
            :class:`~vlm_lora_plugin.contract.MeasuringProcessor`, rows that are to be truncated are encoded.

    Yields:
        For each row what it holds, or what is wrong with it.

    Raises:
        AdapterError: The processor learns from answers that are marked as not to be learnt.
    """
    heeded = False
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(examples), _CHUNK):
            rows = [_read(examples, index) for index in range(start, min(start + _CHUNK, len(examples)))]
            looked = pool.map(lambda row: _look(row, settings, decode=decode), rows)
            for row, images in zip(rows, looked, strict=True):
                if isinstance(row, DataError):
                    yield row
                elif isinstance(images, DataError):
                    yield images
                else:
                    if not heeded and _has_marks(row):
                        heeded = _check_heeded(row, tuple(size for size, _ in images), processor)
                    yield _measure(row, images, processor, settings)


def survey_together(
    examples: Sequence[Example], processor: Processor, settings: DataSettings, *, decode: bool = False
) -> Iterator[RowFacts | DataError]:
    """Look at rows as :func:`survey` does, each rank of a machine at its share of them; every rank must come here.

    Rows are dealt in turn, so that long ones spread. What fails unexpectedly on one rank is raised on all of its
    machine, so that none waits for it.

    Yields:
        For each row of all what it holds, or what is wrong with it, in the rows' order.
    """
    rank, ranks = ranks_of_this_node()
    if ranks == 1:
        yield from survey(examples, processor, settings, decode=decode)
        return
    share = _Share(examples, range(rank, len(examples), ranks))
    own: list[RowFacts | DataError] = []
    failure: Exception | None = None
    try:
        own.extend(survey(share, processor, settings, decode=decode))
    except Exception as error:  # a processor may raise anything; the other ranks must hear of it
        failure = error
    gathered = gathered_on_node((own, failure if failure is None else f"{type(failure).__name__}: {failure}"))
    if failure is not None:
        raise failure
    for number, (_, problem) in enumerate(gathered):
        if problem is not None:
            raise DataError(f"Process {number} of this machine could not look at its share of the rows: {problem}")
    for index in range(len(examples)):
        yield gathered[index % ranks][0][index // ranks]


class _Share(Sequence["Example"]):
    """Some of the rows, read when they are asked for."""

    def __init__(self, examples: Sequence[Example], indices: Sequence[int]) -> None:
        self._examples, self._indices = examples, indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> _Share: ...

    def __getitem__(self, index: int | slice) -> Example | _Share:
        if isinstance(index, slice):
            return _Share(self._examples, self._indices[index])
        return self._examples[self._indices[index]]


def image_sizes(example: Example, settings: DataSettings, *, decode: bool = False) -> tuple[tuple[int, int], ...]:
    """Return the sizes, (width, height) in pixels, of a row's images; see :func:`look_at_images`."""
    return tuple(size for size, _ in look_at_images(example, settings, decode=decode))


def look_at_images(
    example: Example, settings: DataSettings, *, decode: bool = False
) -> list[tuple[tuple[int, int], Peculiarities]]:
    """Open the images of a row and return the size, (width, height) in pixels, and the peculiarities of each.

    Args:
        example: The row.
        settings: Its ``max_image_pixels`` is checked before any pixel is decoded; with its ``exif_transpose`` sizes are
            those of the turned images.
        decode: Decode the pixels too.

    Raises:
        DataError: An image is missing, broken, or too large; names row and file.
    """
    found = []
    for image in example.images:
        with open_image(image, origin=example.origin, max_pixels=settings.max_image_pixels) as opened:
            if decode:
                opened.load()
            size = turned_size(opened) if settings.exif_transpose else opened.size
            found.append((size, peculiarities(opened, decoded=decode)))
    return found


def _read(examples: Sequence[Example], index: int) -> Example | DataError:
    try:
        return examples[index]
    except DataError as error:
        return error


def _look(
    row: Example | DataError, settings: DataSettings, *, decode: bool
) -> list[tuple[tuple[int, int], Peculiarities]] | DataError:
    if isinstance(row, DataError):
        return row
    try:
        return look_at_images(row, settings, decode=decode)
    except DataError as error:
        return error


def _has_marks(example: Example) -> bool:
    return any(message.role == "assistant" and not message.supervised for message in example.messages)


def _check_heeded(example: Example, sizes: tuple[tuple[int, int], ...], processor: Processor) -> bool:
    """Return True when marked answers are seen to be left out; False when this row cannot show it.

    Raises:
        AdapterError: They are learnt from.
    """
    plain = replace(example, messages=tuple(replace(message, learnt=None) for message in example.messages))
    try:
        few, all_of_them = (
            processor.measure(row, sizes) if isinstance(processor, MeasuringProcessor) else processor.count_tokens(row)
            for row in (example, plain)
        )
    except DataError:
        return False
    if few[1] >= all_of_them[1]:
        raise AdapterError(
            f"{example.origin}: an answer is marked as not to be learnt, and {type(processor).__name__} learns from it",
            why="The family's processor does not look at the mark, Message.supervised.",
            fix="Update the family's plugin, or use data without marks and with data.loss_on: all.",
        )
    return True


def _measure(
    example: Example,
    images: Sequence[tuple[tuple[int, int], Peculiarities]],
    processor: Processor,
    settings: DataSettings,
) -> RowFacts | DataError:
    sizes = tuple(size for size, _ in images)
    limits: dict[str, Any] = {"max_length": settings.max_length, "truncation_strategy": settings.truncation_strategy}
    measuring = processor if isinstance(processor, MeasuringProcessor) else None
    try:
        length, learnt = measuring.measure(example, sizes) if measuring else processor.count_tokens(example)
        truncated = length > settings.max_length
        # Both raise what training would raise: too long, an image cut, no answer left.
        if truncated and measuring:
            length, learnt = measuring.measure(example, sizes, **limits)
        elif truncated:
            row = processor.encode(example, **limits)
            length, learnt = len(row["labels"]), int((row["labels"] != IGNORE_INDEX).sum())
        found = tuple(peculiar for _, peculiar in images)
        return RowFacts(example.origin, length, learnt, truncated, sizes, found, example.passed_over)
    except DataError as error:
        return error
