"""From a conversation to Monkey's ids, labels and pixels.

Upstream has no chat template: a turn's text is the prompt, an answer follows it directly and ends with
``<|endoftext|>``. Verbatim examples (Monkey's own JSON) already hold that text; all others are put into the
form that Monkey-Chat's published usage shows, ``<img>..</img> question Answer: answer``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lora_monkey.names import END_OF_TEXT, IMAGE_END, IMAGE_PAD, IMAGE_START
from vlm_lora_monkey.tokenization import load_tokenizer, save_vocabulary, token_ids
from vlm_lora_monkey.weights import load_config
from vlm_lora_plugin.contract import IMAGE_MARK, Example, LoadRequest, Message
from vlm_lora_plugin.data.encoding import (
    Encoded,
    EncodingProcessor,
    check_alternating,
    check_ends_with_answer,
    check_image_marks,
    load_pixels,
)
from vlm_lora_plugin.errors import DataError, ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from vlm_lora_monkey.configuration import MonkeyConfig

_INLINE_IMAGE = re.compile(f"{IMAGE_START}.*?{IMAGE_END}", re.DOTALL)


class MonkeyProcessor(EncodingProcessor):
    """Encodes conversations, and images as ``pixel_values`` [images, 3, S, S] fp32, for Monkey.

    Args:
        tokenizer: From :func:`vlm_lora_monkey.tokenization.load_tokenizer`.
        image_size: Side length in pixels of what the vision tower takes (896 as published).
        image_token_span: Positions between ``<img>`` and ``</img>`` (1280 as published).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, image_size: int, image_token_span: int) -> None:
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.image_token_span = image_token_span
        self.image_span = image_token_span + 2  # with <img> and </img>
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

    def encode_row(self, example: Example, image_tokens: Sequence[int], *, answered: bool) -> Encoded:
        """Return the tokens of user and assistant turns in alternation, a system message before them if wanted."""
        turns = self._turns(example)
        if answered:
            check_ends_with_answer(turns, example.origin)
        elif turns[-1].role == "assistant":
            turns = turns[:-1]
        return self._encode_turns(turns, example)

    def load_image(self, image: Path | bytes, origin: str) -> torch.Tensor:
        """Return the pixels ``[3, S, S]`` of an image stretched to a square."""
        return load_pixels(image, self.image_size, origin=origin)

    def _turns(self, example: Example) -> list[Message]:
        """Return user and assistant turns whose text is the exact prompt, checked for order and images."""
        check_alternating(
            example, why="Monkey's prompt has no marks for who speaks: questions and answers must alternate."
        )
        check_image_marks(example, "Monkey")
        messages = list(example.messages)
        system = messages.pop(0).content if messages[0].role == "system" else ""
        if example.verbatim:
            if system:
                raise DataError(
                    f"{example.origin}: a system message cannot be put into a row of Monkey's own form",
                    why="Its text already is the exact prompt, which has no place for one.",
                    fix="Write it into the first turn, or give the row as `messages`; leave Swift's --system out.",
                )
            return messages
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

    def _encode_turns(self, turns: Iterable[Message], example: Example) -> Encoded:
        encoded = Encoded()
        images = map(self._image_block, example.images)
        for turn in turns:
            encoded.append_marked(
                turn.content, partial(self._text_ids, example=example), images, supervised=turn.supervised
            )
            if turn.role == "assistant":
                encoded.append([self.end_id], supervised=turn.supervised)
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


def load_processor(request: LoadRequest) -> MonkeyProcessor:
    """Build the processor of a folder.

    Raises:
        ModelError: The config is impossible, or the vocabulary is missing, broken, or not the config's.
    """
    return MonkeyProcessor.from_pretrained(request.folder, load_config(request))
