"""From a conversation to Monkey's ids, labels and pixels.

Upstream has no chat template: a turn's text is the prompt, an answer follows it directly and ends with
``<|endoftext|>``. Verbatim examples (Monkey's own JSON) already hold that text; all others are put into the
form that Monkey-Chat's published usage shows, ``<img>..</img> question Answer: answer``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vlm_lora_monkey.special_tokens import END_OF_TEXT, IMAGE_END, IMAGE_PAD, IMAGE_START
from vlm_lora_monkey.tokenization import load_tokenizer, save_vocabulary, token_ids
from vlm_lora_monkey.weights import load_config
from vlm_lora_plugin.contract import LoadRequest
from vlm_lora_plugin.contract.example import IMAGE_MARK, Example, Message
from vlm_lora_plugin.data.collation import IGNORE_INDEX, collate_rows
from vlm_lora_plugin.data.pixels import load_pixels
from vlm_lora_plugin.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from vlm_lora_monkey.configuration import MonkeyConfig

_INLINE_IMAGE = re.compile(f"{IMAGE_START}.*?{IMAGE_END}", re.DOTALL)


@dataclass
class _Encoded:
    """Ids and labels of equal length, and where image blocks stand as (first, one past the last)."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    blocks: list[tuple[int, int]] = field(default_factory=list)

    def append(self, ids: Sequence[int], *, supervised: bool) -> None:
        self.ids += ids
        self.labels += ids if supervised else [IGNORE_INDEX] * len(ids)

    @property
    def supervised(self) -> int:
        return sum(label != IGNORE_INDEX for label in self.labels)


class MonkeyProcessor:
    """Implements :class:`vlm_lora_plugin.contract.Processor` for Monkey.

    Args:
        tokenizer: From :func:`vlm_lora_monkey.tokenization.load_tokenizer`.
        image_size: Side length in pixels of what the vision tower takes (896 as published).
        image_token_span: Positions between ``<img>`` and ``</img>`` (1280 as published).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, image_size: int, image_token_span: int) -> None:
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.image_token_span = image_token_span
        vocabulary = tokenizer.get_vocab()
        self.image_start_id = vocabulary[IMAGE_START]
        self.image_end_id = vocabulary[IMAGE_END]
        self.image_pad_id = vocabulary[IMAGE_PAD]
        self.end_id = vocabulary[END_OF_TEXT]

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: MonkeyConfig) -> MonkeyProcessor:
        """Read ``qwen.tiktoken`` from a model folder.

        Raises:
            ModelError: The vocabulary is missing, broken, or not the one that the config's image ids belong to.
        """
        processor = cls(
            load_tokenizer(folder),
            image_size=config.vision.image_size,
            image_token_span=config.image_token_span,
        )
        if processor.image_start_id != config.image_start_id:
            raise ModelError(
                f"In {folder} the vocabulary gives {IMAGE_START} the id {processor.image_start_id}, "
                f"config.json says {config.image_start_id}",
                why="The model would not find its images in the prompt.",
                fix="Use the qwen.tiktoken and the config.json of one and the same published model.",
            )
        return processor

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``qwen.tiktoken``; sizes come from the model's config when it is read again."""
        save_vocabulary(self.tokenizer, folder)

    def encode(
        self, example: Example, *, max_length: int | None = None, truncation_strategy: str = "raise"
    ) -> dict[str, torch.Tensor]:
        """Turn a conversation that ends with an answer into training tensors; opens the images.

        Args:
            example: User and assistant turns in alternation, a system message before them if wanted.
            max_length: Most tokens allowed, images included; None for no limit.
            truncation_strategy: ``raise``, or ``right`` to cut the end off, though never inside an image.

        Returns:
            ``input_ids`` [T] int64; ``labels`` [T] int64, -100 everywhere but on the answers and the
            ``<|endoftext|>`` after each; ``pixel_values`` [images, 3, S, S] fp32 if there are images.

        Raises:
            DataError: The turns, image marks, images or length do not allow it.
        """
        encoded = self._encode_training(example)
        if max_length is not None and len(encoded.ids) > max_length:
            self._shorten(encoded, example.origin, max_length, truncation_strategy)
        tensors = {
            "input_ids": torch.tensor(encoded.ids, dtype=torch.int64),
            "labels": torch.tensor(encoded.labels, dtype=torch.int64),
        }
        return tensors | self._pixels(example)

    def encode_prompt(self, example: Example) -> dict[str, torch.Tensor]:
        """Return ``input_ids`` [T] and ``pixel_values`` of everything before the last answer.

        An answer at the end is left out, with the images before it kept.

        Raises:
            DataError: The turns, image marks or images do not allow it.
        """
        turns = self._turns(example)
        if turns[-1].role == "assistant":
            turns = turns[:-1]
        encoded = self._encode_turns(turns, example)
        return {"input_ids": torch.tensor(encoded.ids, dtype=torch.int64)} | self._pixels(example)

    def count_tokens(self, example: Example) -> tuple[int, int]:
        """Return (tokens, supervised tokens) of the untruncated example, without opening an image.

        Raises:
            DataError: The turns or image marks do not allow training on it.
        """
        encoded = self._encode_training(example)
        return len(encoded.ids), encoded.supervised

    def collate(self, features: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Make one batch of encoded examples.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels`` [B, T] int64, padded on the right to the longest
            (prompts without labels: on the left); ``pixel_values`` [N, 3, S, S] with the images of all rows
            in order, absent when no row has one. The mask covers the ``<|endoftext|>`` of an answer, though
            padding has the same id.
        """
        return collate_rows(features, pad_token_id=self.end_id)

    def _encode_training(self, example: Example) -> _Encoded:
        turns = self._turns(example)
        if turns[-1].role != "assistant":
            raise DataError(
                f"{example.origin}: the last message is the user's, so there is nothing to learn",
                fix="End the conversation with an assistant message.",
            )
        return self._encode_turns(turns, example)

    def _turns(self, example: Example) -> list[Message]:
        """Return user and assistant turns whose text is the exact prompt, checked for order and images."""
        messages = list(example.messages)
        system = messages.pop(0).content if messages and messages[0].role == "system" else ""
        for position, message in enumerate(messages):
            expected = ("user", "assistant")[position % 2]
            if message.role != expected:
                raise DataError(
                    f"{example.origin}: message {position + 1} is the {message.role}'s, not the {expected}'s",
                    why="Monkey's prompt has no marks for who speaks: questions and answers must alternate.",
                    fix="Start with a user message (after at most one system message) and join messages of one role.",
                )
        if not messages:
            raise DataError(f"{example.origin}: there is no user message", fix="Add a question and its answer.")
        if IMAGE_MARK in "".join([system, *(m.content for m in messages if m.role == "assistant")]):
            raise DataError(
                f"{example.origin}: {IMAGE_MARK} stands outside the user's messages",
                fix=f"Move {IMAGE_MARK} into a user message; Monkey reads images, it cannot answer with one.",
            )
        marks = sum(message.content.count(IMAGE_MARK) for message in messages)
        if marks != len(example.images):
            raise DataError(
                f"{example.origin}: {marks} {IMAGE_MARK} marks in the messages, {len(example.images)} images",
                fix=f"Write one {IMAGE_MARK} for each image, where it belongs in the text.",
            )
        if example.verbatim:
            return [Message("user", system + messages[0].content), *messages[1:]]
        return [self._formatted(m, example.origin, system if i == 0 else "") for i, m in enumerate(messages)]

    def _formatted(self, message: Message, origin: str, system: str) -> Message:
        if message.role == "assistant":
            return message
        inline = _INLINE_IMAGE.search(message.content)
        if inline:
            raise DataError(
                f"{origin}: a message holds {inline[0][:80]!r}, which is Monkey's own way to name an image",
                why="In rows with `messages` it would be read as plain text and the image never be seen.",
                fix=f"Write {IMAGE_MARK} in its place and the path into `images`.",
            )
        parts = [part.strip() for part in message.content.split(IMAGE_MARK)]
        with_marks = [piece for part in parts for piece in (part, IMAGE_MARK)][:-1]
        text = " ".join(piece for piece in with_marks if piece) + " Answer: "
        return Message("user", f"{system}\n{text}" if system else text)

    def _encode_turns(self, turns: Iterable[Message], example: Example) -> _Encoded:
        encoded = _Encoded()
        images = iter(example.images)
        for turn in turns:
            supervised = turn.role == "assistant"
            for number, text in enumerate(turn.content.split(IMAGE_MARK)):
                if number:
                    start = len(encoded.ids)
                    encoded.append(self._image_block(next(images)), supervised=False)
                    encoded.blocks.append((start, len(encoded.ids)))
                encoded.append(self._text_ids(text, example), supervised=supervised)
            if supervised:
                encoded.append([self.end_id], supervised=True)
        return encoded

    def _image_block(self, image: Path | bytes) -> list[int]:
        """Return the ids that stand for an image. What is inside has no influence: features replace it."""
        return [self.image_start_id, *[self.image_pad_id] * self.image_token_span, self.image_end_id]

    def _text_ids(self, text: str, example: Example) -> list[int]:
        ids = token_ids(self.tokenizer, text, special=example.verbatim)
        if not {self.image_start_id, self.image_end_id, self.image_pad_id}.isdisjoint(ids):
            raise DataError(
                f"{example.origin}: a lone {IMAGE_START}, {IMAGE_END} or {IMAGE_PAD} in {text[:80]!r}",
                why="The model would take what follows for an image.",
                fix="Remove it, or write the row with `messages`, where such text is read as plain text.",
            )
        return ids

    def _shorten(self, encoded: _Encoded, origin: str, max_length: int, truncation_strategy: str) -> None:
        if truncation_strategy != "right":
            raise DataError(
                f"{origin}: {len(encoded.ids)} tokens are needed, max_length is {max_length}",
                fix="Raise data.max_length, or set data.truncation_strategy to right to cut the end off.",
            )
        if any(end > max_length for _, end in encoded.blocks):
            raise DataError(
                f"{origin}: cutting {len(encoded.ids)} tokens to max_length {max_length} would cut an image",
                why=f"An image takes {self.image_token_span + 2} tokens, and only whole ones have a meaning.",
                fix="Raise data.max_length, or use fewer images in this row.",
            )
        del encoded.ids[max_length:], encoded.labels[max_length:]
        if not encoded.supervised:
            raise DataError(
                f"{origin}: cut to max_length {max_length}, no token of an answer is left to learn from",
                fix="Raise data.max_length, or shorten the question.",
            )

    def _pixels(self, example: Example) -> dict[str, torch.Tensor]:
        if not example.images:
            return {}
        pixels = [load_pixels(image, self.image_size, origin=example.origin) for image in example.images]
        return {"pixel_values": torch.stack(pixels)}


def load_processor(request: LoadRequest) -> MonkeyProcessor:
    """Build the processor of a folder.

    Raises:
        ModelError: The config is impossible, or the vocabulary is missing, broken, or not the config's.
    """
    config = load_config(request.folder, needs_weights=request.device != "meta", variant=request.variant)
    return MonkeyProcessor.from_pretrained(request.folder, config)
