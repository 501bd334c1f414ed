"""The data of a Swift run: the rows, order and errors that ``vlm-lora train`` has.

Swift's own reading is not used. It looks for relative image paths in the working directory, leaves rows out or
puts others in their place, and shuffles once more.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import ConcatDataset, Dataset

from vlm_lora_plugin.contract import MeasuringProcessor
from vlm_lora_plugin.contract.example import Message
from vlm_lora_plugin.data.dataset import ConversationDataset
from vlm_lora_plugin.data.first_rows import file_and_count
from vlm_lora_plugin.data.mixture import mixture_parts
from vlm_lora_plugin.errors import DataError, SwiftError
from vlm_lora_plugin.outside.files import why_unusable

if TYPE_CHECKING:
    import torch

    from vlm_lora_plugin.contract import Family, Processor
    from vlm_lora_plugin.contract.example import Example
    from vlm_lora_plugin.recipe import DataSettings

IMAGE_ROOT = "ROOT_IMAGE_DIR"
"""Environment variable that moves Swift's relative image paths; here they start at the data file."""

_logger = logging.getLogger(__name__)


@dataclass
class SystemPrompt:
    """A processor that puts a system message before conversations that have none: ``--system``.

    Attributes:
        inner: The adapter's processor.
        text: The message.
        tokenizer: The adapter's.
    """

    inner: Processor
    text: str
    tokenizer: Any

    def encode(
        self, example: Example, *, max_length: int | None = None, truncation_strategy: str = "raise"
    ) -> dict[str, torch.Tensor]:
        """See :class:`vlm_lora_plugin.contract.Processor`."""
        return self.inner.encode(
            self._prompted(example), max_length=max_length, truncation_strategy=truncation_strategy
        )

    def encode_prompt(self, example: Example) -> dict[str, torch.Tensor]:
        """See :class:`vlm_lora_plugin.contract.Processor`."""
        return self.inner.encode_prompt(self._prompted(example))

    def count_tokens(self, example: Example) -> tuple[int, int]:
        """See :class:`vlm_lora_plugin.contract.Processor`."""
        return self.inner.count_tokens(self._prompted(example))

    def collate(self, features: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """See :class:`vlm_lora_plugin.contract.Processor`."""
        return self.inner.collate(features)

    def save_pretrained(self, folder: str | Path) -> None:
        """See :class:`vlm_lora_plugin.contract.Processor`."""
        self.inner.save_pretrained(folder)

    def __getattr__(self, name: str) -> Any:
        """Return what the adapter's processor is set to, such as ``hd_num``; its methods are not taken over."""
        settings = vars(vars(self)["inner"]) if "inner" in vars(self) else {}
        if name not in settings:
            raise AttributeError(name)
        return settings[name]

    def _prompted(self, example: Example) -> Example:
        if any(message.role == "system" for message in example.messages):
            return example
        if example.verbatim and not example.by_roles:
            raise DataError(
                f"{example.origin}: --system cannot be put into a row that has upstream's labels",
                why="Upstream's label mask knows no system message.",
                fix="Leave --system or data.upstream_labels out, or write the row with `messages`.",
            )
        return replace(example, messages=(Message("system", self.text), *example.messages))


class MeasuringSystemPrompt(SystemPrompt):
    """The same around a :class:`~vlm_lora_plugin.contract.MeasuringProcessor`."""

    def measure(self, example: Example, image_sizes: Sequence[tuple[int, int]], **limits: Any) -> tuple[int, int]:
        """See :class:`vlm_lora_plugin.contract.MeasuringProcessor`."""
        inner: Any = self.inner
        tokens, supervised = inner.measure(self._prompted(example), image_sizes, **limits)
        return tokens, supervised


def with_system_prompt(processor: Processor, text: str) -> Processor:
    """Return a processor that puts a system message before conversations that have none."""
    kind = MeasuringSystemPrompt if isinstance(processor, MeasuringProcessor) else SystemPrompt
    return kind(processor, text, processor.tokenizer)


def read_datasets(
    files: Sequence[str],
    processor: Processor,
    settings: DataSettings,
    family: Family,
    *,
    seed: int = 42,
    decode: bool = True,
) -> Dataset[dict[str, torch.Tensor]] | None:
    """Open data files one after another and check every row and image of them.

    Args:
        files: What ``--dataset`` or ``--val_dataset`` names.
        processor: The adapter's, or one around it.
        settings: The recipe's.
        family: Whose own row format is read too.
        seed: Of the draw of rows from a mixture.
        decode: Decode every image; if not, only headers are read.

    Returns:
        The rows in the files' order, or None for no files.

    Raises:
        SwiftError: One is not a JSONL or JSON file on disk.
        DataError: Rows cannot be used and are not to be skipped.
    """
    if os.environ.get(IMAGE_ROOT):
        raise SwiftError(
            f"The environment variable {IMAGE_ROOT} is set",
            why="Relative image paths start at the data file's folder; the variable would be ignored.",
            fix="Unset it, and write image paths relative to the data file.",
        )
    sets = []
    for name in files:
        data = ConversationDataset(_local(name, family), processor, settings, family, seed=seed)
        found = data.check(decode=decode)
        _logger.info("%s: %d rows, %d images, %d tokens", name, found.rows, found.images, found.tokens)
        for problem in data.skipped:
            _logger.warning("left out: %s", problem.what)
        sets.append(data)
    if not sets:
        return None
    return sets[0] if len(sets) == 1 else ConcatDataset(sets)


def _local(name: str, family: Family) -> Path:
    given = Path(name).expanduser()
    path, _ = file_and_count(given)
    if path.exists() and (problem := why_unusable(path)):
        raise SwiftError(f"--dataset {name} cannot be read: {problem}", fix="Give the path of a JSONL or JSON file.")
    if path.is_file() and (path.suffix.lower() in (".jsonl", ".json") or mixture_parts(path, family) is not None):
        return given
    raise SwiftError(
        f"--dataset {name} is not a JSONL or JSON file on disk",
        why="Only such a file gives the same rows in the same order in every framework; Swift's data sets from a hub "
        "and other formats do not.",
        fix="Write the rows that you want into a .jsonl file and give its path.",
    )
