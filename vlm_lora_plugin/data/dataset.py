"""A torch dataset over a data file; images are decoded where an item is fetched, in a DataLoader's workers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch.utils.data import Dataset

from vlm_lora_plugin.data.preflight import DataStatistics, check_examples
from vlm_lora_plugin.data.reading import read_examples

if TYPE_CHECKING:
    import torch

    from vlm_lora_plugin.data.example import Example
    from vlm_lora_plugin.recipe import DataSettings
    from vlm_lora_plugin.types import Family, Processor


class ConversationDataset(Dataset["dict[str, torch.Tensor]"]):
    """The rows of a data file, encoded when they are fetched.

    Items hold ``input_ids`` [T], ``labels`` [T] and, with images, ``pixel_values``; batch them with the
    processor's ``collate``. Nothing is cached, so that memory stays flat over epochs.

    Args:
        path: See :func:`vlm_lora_plugin.data.reading.read_examples`.
        processor: The model's processor.
        settings: Length limit and what happens beyond it.
        family: The model's family, whose own row format is read too.

    Raises:
        DataError: The file or some of its rows cannot be read.
    """

    def __init__(self, path: str | Path, processor: Processor, settings: DataSettings, family: Family) -> None:
        self.examples: list[Example] = read_examples(path, family)
        self.processor = processor
        self.settings = settings

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.processor.encode(
            self.examples[index],
            max_length=self.settings.max_length,
            truncation_strategy=self.settings.truncation_strategy,
        )

    def check(self) -> DataStatistics:
        """Check every row before training; see :func:`vlm_lora_plugin.data.preflight.check_examples`."""
        return check_examples(self.examples, self.processor, self.settings)
