"""A torch dataset over a data file; images are decoded where an item is fetched, in a DataLoader's workers."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from vlm_lora_plugin.data.files import fingerprint, unreadable_rows
from vlm_lora_plugin.data.images import pixel_limit
from vlm_lora_plugin.data.mixture import open_examples
from vlm_lora_plugin.data.reading import raise_for_rows
from vlm_lora_plugin.data.rows.rules import RowRules
from vlm_lora_plugin.data.statistics import DataStatistics, DataSurvey, Progress
from vlm_lora_plugin.data.survey import survey, survey_together
from vlm_lora_plugin.errors import DataError, RecipeError, listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vlm_lora_plugin.contract import Family, Processor
    from vlm_lora_plugin.recipe import DataSettings


class ConversationDataset(Dataset["dict[str, Any]"]):
    """The rows of a data file, read from disk and encoded when they are fetched.

    Items hold ``input_ids`` [T], ``labels`` [T] and, with images, what the processor makes of them; batch them with the
    processor's ``collate``. Neither rows nor images are kept, so that memory stays flat over rows and epochs.

    Rows that cannot be used are an error or, with ``settings.on_bad_sample`` ``skip``, left out when the dataset
    is made and by :meth:`check`. Its length and order are fixed from then on: a row that fails when it is
    fetched raises, and never is another one given in its place.

    Args:
        path: A data file, see :class:`vlm_lora_plugin.data.files.ExampleFile`, or a mixture of the family's.
        processor: The model's processor.
        settings: Limits of length and image size, and what happens beyond them.
        family: The model's family, whose own row format is read too.
        seed: Of the draw of rows from a mixture.

    Attributes:
        examples: The rows.
        skipped: What is wrong with the rows that were left out.

    Raises:
        DataError: The file cannot be read, or some of its rows and they are not to be skipped.
        RecipeError: The processor was loaded with other settings than ``settings.processor``.
    """

    def __init__(
        self, path: str | Path, processor: Processor, settings: DataSettings, family: Family, *, seed: int = 42
    ) -> None:
        _refuse_other_settings(processor, settings)
        self.examples = open_examples(
            path,
            family,
            allow_outside_images=settings.allow_outside_images,
            seed=seed,
            rules=RowRules.of(settings),
        )
        self.processor = processor
        self.settings = settings
        self.skipped: list[DataError] = []
        self._leave_out(unreadable_rows(self.examples))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        with pixel_limit(self.settings.max_image_pixels):
            return self.processor.encode(
                example,
                max_length=self.settings.max_length,
                truncation_strategy=self.settings.truncation_strategy,
            )

    @cached_property
    def fingerprint(self) -> tuple[int, str]:
        """Bytes and SHA-256 of the data files, read through once for each process."""
        return fingerprint(self.examples.files)

    def check(self, *, decode: bool = False, progress: Progress | None = None, share: bool = False) -> DataStatistics:
        """Check every row before training, and leave out the unusable ones if the settings say so.

        Args:
            decode: Decode every image rather than read its header alone.
            progress: Told how many rows are done.
            share: Let each rank of a machine look at its share of the rows; every rank of the job must come here,
                and all of a machine come to the same result. Without it this process looks at all of them.

        Raises:
            DataError: Rows cannot be used and are not to be skipped, or not one can be used.
        """
        look = survey_together if share else survey
        found = DataSurvey().add(look(self.examples, self.processor, self.settings, decode=decode), progress)
        self._leave_out(found.bad)
        return found.statistics(skipped=len(self.skipped))

    def _leave_out(self, bad: Mapping[int, DataError]) -> None:
        total = len(self.examples)
        if self.settings.on_bad_sample == "error" or len(bad) == total:
            raise_for_rows(list(bad.values()), total)
        if bad:
            self.examples.keep([index for index in range(total) if index not in bad])
            self.skipped += bad.values()


def _refuse_other_settings(processor: Processor, settings: DataSettings) -> None:
    other = [
        f"{name} is {value}, not {getattr(processor, name, None)}"
        for name, value in settings.processor.items()
        if getattr(processor, name, None) != value
    ]
    if getattr(processor, "exif_transpose", False) != settings.exif_transpose:
        other.append(f"exif_transpose is {settings.exif_transpose}, not {not settings.exif_transpose}")
    if other:
        raise RecipeError(
            f"The processor was not loaded with what the recipe's data say (recipe, processor): {listed(other)}",
            why="Images would be seen in another way than the recipe says.",
            fix="Load it with the recipe: load(folder, recipe).",
        )
