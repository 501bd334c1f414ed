"""From a conversation to XComposer's ids, labels and pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm_lora_plugin.contract import LoadRequest
from vlm_lora_plugin.contract.example import Example
from vlm_lora_plugin.data.collation import collate_rows
from vlm_lora_plugin.data.images import image_size
from vlm_lora_plugin.errors import ModelError, RecipeError
from vlm_lora_xcomposer.encoding import Encoded, Encoder
from vlm_lora_xcomposer.fitting import refuse_unfit
from vlm_lora_xcomposer.images import load_pixels, number_of_image_tokens, refuse_elongated, transformed_size
from vlm_lora_xcomposer.prompt import TURN_END, TURN_START
from vlm_lora_xcomposer.shapes import load_config
from vlm_lora_xcomposer.tokenization import Vocabulary, load_vocabulary

if TYPE_CHECKING:
    from vlm_lora_xcomposer.configuration import XComposerConfig


class XComposerProcessor:
    """Implements :class:`vlm_lora_plugin.contract.Processor` and ``MeasuringProcessor`` for XComposer.

    Rows with ``messages`` are put into upstream's prompt, roles deciding what is learnt: each answer with the end
    of its turn, and at the very end the new line and ``</s>`` that upstream supervises. The spelling of a control
    token inside a text is text. Rows in upstream's own format (``Example.verbatim``) are encoded token for token as
    upstream does it, with its label mask and with control tokens read inside texts.

    Args:
        vocabulary: From :func:`vlm_lora_xcomposer.tokenization.load_vocabulary`.
        config: The model's configuration.
        hd_num: Most crops of one image; None takes the config's.

    Attributes:
        hd_num: Most crops of one image; None for version 2, which takes no crops.
        stop_token_ids: What ends an answer when it is generated.

    Raises:
        RecipeError: ``hd_num`` is given for version 2.
    """

    def __init__(self, vocabulary: Vocabulary, config: XComposerConfig, *, hd_num: int | None = None) -> None:
        if hd_num is not None and not config.takes_crops:
            raise RecipeError(
                f"data.processor.hd_num is {hd_num}, but this model sees every image as one square",
                why=f"Version 2 stretches images to {config.image_size} x {config.image_size} pixels; only 4KHD and "
                "2.5 cut them into crops.",
                fix="Leave data.processor.hd_num out.",
            )
        self.vocabulary, self.tokenizer, self.config = vocabulary, vocabulary.tokenizer, config
        self.hd_num = config.hd_num if hd_num is None else hd_num
        self._encoder = Encoder(vocabulary, config)
        self.stop_token_ids = (config.turn_end_id, self.tokenizer.eos_token_id)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, config: XComposerConfig, options: Mapping[str, Any] | None = None
    ) -> XComposerProcessor:
        """Read ``tokenizer.model`` from a model folder.

        Args:
            folder: The model folder.
            config: The model's configuration.
            options: The recipe's ``data.processor``: ``hd_num``.

        Raises:
            ModelError: The vocabulary is missing, broken, or not the one that the config belongs to.
            RecipeError: An option does not fit the model.
        """
        vocabulary = load_vocabulary(folder)
        ids = vocabulary.tokenizer.get_vocab()
        wanted = {TURN_END: config.turn_end_id, TURN_START: config.turn_end_id + 1}
        wrong = [f"{text} is {ids.get(text)}, not {token}" for text, token in wanted.items() if ids.get(text) != token]
        if config.image_token_id not in vocabulary.special_ids:
            wrong.append(f"the image token {config.image_token_id} is not a reserved token")
        if wrong:
            raise ModelError(
                f"In {folder} the vocabulary does not fit config.json: {'; '.join(wrong)}",
                why="The model would not find turns and images in the prompt.",
                fix="Use the tokenizer.model and the config.json of one and the same published model.",
            )
        return cls(vocabulary, config, **(options or {}))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the vocabulary; sizes come from the model's config when it is read again."""
        self.vocabulary.save(folder)

    def encode(
        self, example: Example, *, max_length: int | None = None, truncation_strategy: str = "raise"
    ) -> dict[str, Any]:
        """Turn a conversation into training tensors; opens the images.

        Args:
            example: The conversation.
            max_length: Most tokens allowed, images included; None for no limit.
            truncation_strategy: ``raise``, or ``right`` to cut the end off, though never inside an image.

        Returns:
            ``input_ids`` [T] int64, ``config.image_token_id`` where an image stands; ``labels`` [T] int64, -100 where
            nothing is learnt; with images ``pixel_values``, a list of ``[3, H, W]`` fp32 whose sizes may differ.

        Raises:
            DataError: The turns, image marks, images or length do not allow it.
        """
        pixels = self._pixels(example)
        encoded = self._encoder.encode(example, [self._tokens_of(image) for image in pixels])
        encoded = self._shorten(encoded, example, max_length, truncation_strategy)
        labels = torch.tensor(encoded.labels, dtype=torch.int64)
        return self._tensors(encoded, pixels) | {"labels": labels}

    def encode_prompt(self, example: Example) -> dict[str, Any]:
        """Return ``input_ids`` [T] and ``pixel_values`` of everything before the last answer, its header included.

        Raises:
            DataError: The turns, image marks or images do not allow it.
        """
        pixels = self._pixels(example)
        encoded = self._encoder.encode_prompt(example, [self._tokens_of(image) for image in pixels])
        return self._tensors(encoded, pixels)

    def count_tokens(self, example: Example) -> tuple[int, int]:
        """Return (tokens, supervised tokens) of the untruncated example; reads image headers, no pixels.

        Raises:
            DataError: The turns, image marks or images do not allow training on it.
        """
        return self.measure(example, [image_size(image, origin=example.origin) for image in example.images])

    def measure(
        self,
        example: Example,
        image_sizes: Sequence[tuple[int, int]],
        *,
        max_length: int | None = None,
        truncation_strategy: str = "raise",
    ) -> tuple[int, int]:
        """Return (tokens, supervised tokens) that :meth:`encode` would give, by arithmetic.

        Args:
            example: The conversation.
            image_sizes: (width, height) in pixels of each image.
            max_length: As in :meth:`encode`.
            truncation_strategy: As in :meth:`encode`.

        Raises:
            DataError: What :meth:`encode` would raise; of a row that is too long with the largest ``hd_num`` that fits.
        """
        encoded = self._encoder.encode(example, self._image_tokens(image_sizes, self.hd_num, example.origin))
        encoded = self._shorten(encoded, example, max_length, truncation_strategy, image_sizes)
        return len(encoded.ids), encoded.supervised

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make one batch of encoded examples.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels`` [B, T] int64, padded on the right to the longest
            (prompts without labels: on the left); ``pixel_values``, a list with the images of all rows in order,
            absent when no row has one.
        """
        return collate_rows(features, pad_token_id=self.tokenizer.pad_token_id)

    def _tensors(self, encoded: Encoded, pixels: list[torch.Tensor]) -> dict[str, Any]:
        ids = {"input_ids": torch.tensor(encoded.ids, dtype=torch.int64)}
        return {**ids, "pixel_values": pixels} if pixels else ids

    def _pixels(self, example: Example) -> list[torch.Tensor]:
        return [load_pixels(image, self.config, self.hd_num, origin=example.origin) for image in example.images]

    def _tokens_of(self, pixels: torch.Tensor) -> int:
        _, height, width = pixels.shape
        return number_of_image_tokens(height, width, self.config)

    def _image_tokens(self, sizes: Sequence[tuple[int, int]], hd_num: int | None, origin: str) -> list[int]:
        counts = []
        for size in sizes:
            refuse_elongated(*size, self.config, hd_num, origin)
            width, height = transformed_size(*size, self.config, hd_num)
            counts.append(number_of_image_tokens(height, width, self.config))
        return counts

    def _shorten(
        self,
        encoded: Encoded,
        example: Example,
        max_length: int | None,
        truncation_strategy: str,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Encoded:
        """Return what is left of a row; ``sizes`` are read from the images' headers where they are not known."""
        if max_length is None or len(encoded.ids) <= max_length:
            return encoded

        def tokens_at(hd_num: int) -> list[int]:
            known = sizes or [image_size(image, origin=example.origin) for image in example.images]
            return self._image_tokens(known, hd_num, example.origin)

        refuse_unfit(encoded, example.origin, max_length, truncation_strategy, hd_num=self.hd_num, tokens_at=tokens_at)
        return self._encoder.cut(encoded, max_length, verbatim=example.verbatim)


def load_processor(request: LoadRequest) -> XComposerProcessor:
    """Build the processor of a folder.

    Raises:
        ModelError: The config is impossible, or the vocabulary is missing, broken, or not the config's.
        RecipeError: An option does not fit the model.
    """
    config = load_config(request.folder, needs_weights=request.device != "meta", variant=request.variant)
    return XComposerProcessor.from_pretrained(request.folder, config, request.processor)
