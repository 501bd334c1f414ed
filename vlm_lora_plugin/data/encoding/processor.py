"""The base class of a family's processor: what is left to write is the prompt, and how an image becomes pixels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vlm_lora_plugin.contract.architecture import PIXELS
from vlm_lora_plugin.contract.example import Example
from vlm_lora_plugin.data.encoding.encoded import Encoded
from vlm_lora_plugin.data.encoding.fitting import FittingProcessor
from vlm_lora_plugin.data.pixels import turning_images


class EncodingProcessor(FittingProcessor):
    """Implements :class:`vlm_lora_plugin.contract.Processor` and ``MeasuringProcessor``.

    A family writes :meth:`encode_row`, :meth:`load_image` and :meth:`save_pretrained`. Where the number of an image's
    tokens depends on its size, it sets ``image_span`` to None and writes :meth:`tokens_of_size` and
    :meth:`tokens_of_pixels`, too.

    Attributes:
        image_span: Tokens that every image takes, its start and end tokens included; None where that depends on its
            size.
    """

    image_span: int | None

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
        """Return the pixels of an image, ``[3, H, W]`` fp32, by way of ``read_rgb`` or ``load_pixels``, which turn it.

        Raises:
            DataError: It cannot be used; names the image and ``origin``.
        """

    def load_images(self, example: Example, count: int) -> list[torch.Tensor]:
        """Return the pixels of a row's first ``count`` images, turned where :attr:`exif_transpose` says so."""
        with turning_images(self.exif_transpose):
            return [self.load_image(image, example.origin) for image in example.images[:count]]

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
        return self.measure(example, self.image_sizes(example))

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

    def image_tensors(self, images: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Return what a batch holds of a row's images: by default their pixels.

        Returns:
            ``pixel_values``: a tensor ``[n, 3, S, S]`` where ``image_span`` is fixed, else a list of ``[3, H, W]``.
        """
        return {PIXELS: list(images) if self.image_span is None else torch.stack(list(images))}

    def _images_first(self, example: Example) -> list[torch.Tensor] | None:
        """Return the pixels where the tokens of an image depend on them, else None: texts are checked first."""
        return self.load_images(example, len(example.images)) if self.image_span is None else None

    def _spans(self, example: Example, images: Sequence[torch.Tensor] | None) -> list[int]:
        if images is not None:
            return [self.tokens_of_pixels(pixels) for pixels in images]
        return [self.image_span or 0] * len(example.images)
