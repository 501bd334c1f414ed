"""What a processor must be: from one conversation to tensors, and from several to a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from vlm_lora_plugin.contract.example import Example


class Processor(Protocol):
    """Turns one :class:`~vlm_lora_plugin.contract.example.Example` into tensors, and examples into a batch.

    Every framework calls the same processor, so that the ids, labels and pixels cannot differ.
    """

    tokenizer: Any

    def encode(
        self, example: Example, *, max_length: int | None = None, truncation_strategy: str = "raise"
    ) -> dict[str, Any]:
        """Encode a conversation for training; opens its images.

        Returns:
            ``input_ids`` [T] int64, ``labels`` [T] int64 (-100 where not supervised) and the keys that hold images,
            such as ``pixel_values``: a tensor [n, 3, S, S] or a list of n tensors [3, H, W].

        Raises:
            DataError: The row or an image of it cannot be used.
        """
        ...

    def encode_prompt(self, example: Example) -> dict[str, Any]:
        """Return ``input_ids`` and ``pixel_values`` of everything before the last answer, for generation."""
        ...

    def count_tokens(self, example: Example) -> tuple[int, int]:
        """Return (tokens, supervised tokens) of the untruncated example, without decoding an image."""
        ...

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Pad to the longest row: ``input_ids``, ``attention_mask``, ``labels`` [B, T], ``pixel_values`` of all."""
        ...

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what is needed to load this processor again from ``folder``."""
        ...


@runtime_checkable
class MeasuringProcessor(Protocol):
    """What a processor may offer besides: the length of a row from the sizes of its images, without their pixels.

    Where the number of an image's tokens depends on its size, rows are checked by this before training.
    A processor may also have ``stop_token_ids``, the tokens that end a generated answer, where it is not the
    tokenizer's ``eos_token_id`` alone.
    """

    def measure(
        self,
        example: Example,
        image_sizes: Sequence[tuple[int, int]],
        *,
        max_length: int | None = None,
        truncation_strategy: str = "raise",
    ) -> tuple[int, int]:
        """Return (tokens, supervised tokens) that ``encode`` would give, or raise what it would raise."""
        ...
