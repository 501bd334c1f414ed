"""The base class of a family's processor: what is left to write is the prompt, and how an image becomes pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from vlm_lora_plugin.contract.architecture import PIXELS
from vlm_lora_plugin.contract.example import Example
from vlm_lora_plugin.data.collation import collate_rows
from vlm_lora_plugin.data.encoding.encoded import Encoded
from vlm_lora_plugin.data.images import image_size
from vlm_lora_plugin.errors import DataError


class EncodingProcessor(ABC):
    """Implements :class:`vlm_lora_plugin.contract.Processor` and ``MeasuringProcessor``.

    A family writes :meth:`encode_row`, :meth:`load_image` and :meth:`save_pretrained`. Where the number of an image's
    tokens depends on its size, it sets ``image_span`` to None and writes :meth:`tokens_of_size` and
    :meth:`tokens_of_pixels`, too.

    Attributes:
        tokenizer: The model's tokenizer; its ``pad_token_id`` fills batches.
        image_span: Tokens that every image takes, its start and end tokens included; None where that depends on its
            size.
        drops_images: What becomes of a row whose end is cut off with whole images in it: True leaves these images
            out, False refuses the row.
        pad_images: See :func:`~vlm_lora_plugin.data.collation.collate_rows`.
    """

    tokenizer: Any
    image_span: int | None
    drops_images: ClassVar[bool] = False
    pad_images: ClassVar[bool] = False

    @abstractmethod
    def encode_row(self, example: Example, image_tokens: Sequence[int], *, answered: bool) -> Encoded:
        """Return the tokens of a conversation.

        Args:
            example: The conversation.
            image_tokens: How many tokens each of its images takes.
            answered: True for a row to train on, with labels and ``blocks``; False for everything before the last
                answer, whether or not it is there, and what makes the model answer.

        Raises:
            DataError: The turns or image marks do not allow it, or there is nothing to learn.
        """

    @abstractmethod
    def load_image(self, image: Path | bytes, origin: str) -> torch.Tensor:
        """Return the pixels of an image, ``[3, H, W]`` fp32.

        Raises:
            DataError: It cannot be used; names the image and ``origin``.
        """

    def load_images(self, example: Example, count: int) -> list[torch.Tensor]:
        """Return the pixels of a row's first ``count`` images."""
        return [self.load_image(image, example.origin) for image in example.images[:count]]

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write what is needed to load this processor again from ``folder``."""

    def tokens_of_size(self, width: int, height: int, origin: str) -> int:
        """Return how many tokens an image of this size, in pixels, takes.

        Raises:
            DataError: The model cannot take such an image; names ``origin``.
        """
        raise NotImplementedError(f"{type(self).__name__} has image_span None and no tokens_of_size")

    def tokens_of_pixels(self, pixels: torch.Tensor) -> int:
        """Return how many tokens an image takes whose pixels, ``[3, H, W]``, are loaded."""
        raise NotImplementedError(f"{type(self).__name__} has image_span None and no tokens_of_pixels")

    def encode(
        self, example: Example, *, max_length: int | None = None, truncation_strategy: str = "raise"
    ) -> dict[str, Any]:
        """Turn a conversation that ends with an answer into training tensors; opens each image once.

        Args:
            example: The conversation.
            max_length: Most tokens allowed, images included; None for no limit.
            truncation_strategy: ``raise``, or ``right`` to cut the end off, though never inside an image.

        Returns:
            ``input_ids`` [T] int64; ``labels`` [T] int64, -100 everywhere but on the answers and the token that ends
            each; what :meth:`image_tensors` returns if there are images.

        Raises:
            DataError: The turns, image marks, images or length do not allow it.
        """
        images = self._images_first(example)
        encoded = self.encode_row(example, self._spans(example, images), answered=True)
        encoded = self.fitted(encoded, example, max_length, truncation_strategy)
        if images is None:
            images = self.load_images(example, len(encoded.blocks))
        return {**encoded.tensors(labels=True), **(self.image_tensors(images) if images else {})}

    def encode_prompt(self, example: Example) -> dict[str, Any]:
        """Return ``input_ids`` [T] of everything before the last answer, and what :meth:`image_tensors` returns.

        Raises:
            DataError: The turns, image marks or images do not allow it.
        """
        images = self._images_first(example)
        encoded = self.encode_row(example, self._spans(example, images), answered=False)
        if images is None:
            images = self.load_images(example, len(example.images))
        return {**encoded.tensors(labels=False), **(self.image_tensors(images) if images else {})}

    def count_tokens(self, example: Example) -> tuple[int, int]:
        """Return (tokens, supervised tokens) of the untruncated example; reads image headers at most, no pixels.

        Raises:
            DataError: The turns or image marks do not allow training on it.
        """
        if self.image_span is not None:
            return self.measure(example, ())
        return self.measure(example, [image_size(image, origin=example.origin) for image in example.images])

    def measure(
        self,
        example: Example,
        image_sizes: Sequence[tuple[int, int]],
        *,
        max_length: int | None = None,
        truncation_strategy: str = "raise",
    ) -> tuple[int, int]:
        """Return (tokens, supervised tokens) that :meth:`encode` would give, without an image.

        Args:
            example: The conversation.
            image_sizes: (width, height) in pixels of each image; not read where ``image_span`` is fixed.
            max_length: As in :meth:`encode`.
            truncation_strategy: As in :meth:`encode`.

        Raises:
            DataError: What :meth:`encode` would raise.
        """
        if self.image_span is not None:
            spans = [self.image_span] * len(example.images)
        else:
            spans = [self.tokens_of_size(width, height, example.origin) for width, height in image_sizes]
        encoded = self.encode_row(example, spans, answered=True)
        encoded = self.fitted(encoded, example, max_length, truncation_strategy, image_sizes)
        return len(encoded.ids), encoded.supervised

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
            max_length: As in :meth:`encode`.
            truncation_strategy: As in :meth:`encode`.
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

    def image_tensors(self, images: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Return what a batch holds of a row's images: by default their pixels.

        Returns:
            ``pixel_values``: a tensor ``[n, 3, S, S]`` where ``image_span`` is fixed, else a list of ``[3, H, W]``.
        """
        return {PIXELS: list(images) if self.image_span is None else torch.stack(list(images))}

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
        """What fills ``input_ids`` of a batch."""
        return int(self.tokenizer.pad_token_id)

    def _images_first(self, example: Example) -> list[torch.Tensor] | None:
        """Return the pixels where the tokens of an image depend on them, else None: texts are checked first."""
        return self.load_images(example, len(example.images)) if self.image_span is None else None

    def _spans(self, example: Example, images: Sequence[torch.Tensor] | None) -> list[int]:
        if images is not None:
            return [self.tokens_of_pixels(pixels) for pixels in images]
        return [self.image_span or 0] * len(example.images)
