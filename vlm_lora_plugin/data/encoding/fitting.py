"""What becomes of encoded rows, whoever encoded them: cut to a length, and made a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from vlm_lora_plugin.contract.example import Example
from vlm_lora_plugin.data.collation import collate_rows
from vlm_lora_plugin.data.encoding.encoded import Encoded
from vlm_lora_plugin.data.images import image_size
from vlm_lora_plugin.errors import DataError


class FittingProcessor(ABC):
    """The half of a processor that does not depend on the prompt.

    Attributes:
        tokenizer: The model's tokenizer.
        drops_images: What becomes of a row whose end is cut off with whole images in it: True leaves these images
            out, False refuses the row.
        pad_images: See :func:`~vlm_lora_plugin.data.collation.collate_rows`.
        exif_transpose: Whether images are turned as their EXIF data say; the core sets it as the recipe says.
    """

    tokenizer: Any
    drops_images: ClassVar[bool] = False
    pad_images: ClassVar[bool] = False
    exif_transpose: bool = False

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write what is needed to load this processor again from ``folder``."""

    def image_sizes(self, example: Example) -> list[tuple[int, int]]:
        """Return (width, height) in pixels of a row's images as the model sees them, from their headers.

        Raises:
            DataError: An image cannot be used.
        """
        turned = self.exif_transpose
        return [image_size(image, origin=example.origin, exif_transpose=turned) for image in example.images]

    def fitted(
        self,
        encoded: Encoded,
        example: Example,
        max_length: int | None,
        truncation_strategy: str,
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Encoded:
        """Return what is left of a row that may have ``max_length`` tokens.

        Args:
            encoded: The whole row.
            example: Where it comes from.
            max_length: As in ``encode``.
            truncation_strategy: As in ``encode``.
            image_sizes: (width, height) in pixels of each image, where they are known without opening it.

        Raises:
            DataError: It is longer and may not be cut, or cutting it would cut an image or leave nothing to learn.
        """
        if max_length is None or len(encoded.ids) <= max_length:
            return encoded
        self.refuse_unfit(encoded, example, max_length, truncation_strategy, image_sizes)
        return self.shortened(encoded, example, max_length)

    def refuse_unfit(
        self,
        encoded: Encoded,
        example: Example,
        max_length: int,
        truncation_strategy: str,
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Refuse a row of more than ``max_length`` tokens that :meth:`shortened` may not shorten.

        Raises:
            DataError: As :meth:`fitted`.
        """
        length, origin = len(encoded.ids), example.origin
        if truncation_strategy != "right":
            raise DataError(
                f"{origin}: {length} tokens are needed, max_length is {max_length}",
                fix="Raise data.max_length, or set data.truncation_strategy to right to cut the end off.",
            )
        for start, end in encoded.blocks:
            if end > max_length and not (self.drops_images and start >= max_length):
                raise DataError(
                    f"{origin}: cutting {length} tokens to max_length {max_length} would cut an image",
                    why=f"An image takes {end - start} tokens, and only whole ones have a meaning.",
                    fix="Raise data.max_length, or use fewer images in this row.",
                )
        if not replace(encoded, labels=encoded.labels[:max_length]).supervised:
            raise DataError(
                f"{origin}: cut to max_length {max_length}, no token of an answer is left to learn from",
                fix="Raise data.max_length, or shorten the question.",
            )

    def shortened(self, encoded: Encoded, example: Example, length: int) -> Encoded:
        """Return a row without its end."""
        return encoded.shortened(length)

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make one batch of encoded examples.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels`` [B, T] int64, padded on the right to the longest (prompts
            without labels: on the left), and every further key of the rows, see
            :func:`~vlm_lora_plugin.data.collation.collate_rows`. The mask covers the token that ends an answer, also
            where padding has the same id.
        """
        return collate_rows(features, pad_token_id=self.pad_token_id, pad_images=self.pad_images)

    @property
    def pad_token_id(self) -> int:
        """What fills ``input_ids`` of a batch: the tokenizer's padding, or where it has none what ends a text."""
        token = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if token is None else token)
