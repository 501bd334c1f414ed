"""From the texts of a conversation to ids and labels; images are known by how many tokens they take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from vlm_lora_plugin.contract import IMAGE_MARK, Example, Message
from vlm_lora_plugin.data.encoding import (
    IGNORE_INDEX,
    Encoded,
    check_alternating,
    check_ends_with_answer,
    check_image_marks,
)
from vlm_lora_plugin.errors import DataError
from vlm_lora_xcomposer.prompt import ANSWER_HEADER, BEGIN, END, TURN_START, upstream_labels, upstream_text
from vlm_lora_xcomposer.records import UPSTREAM_MARK
from vlm_lora_xcomposer.variants import XCOMPOSER2_5

if TYPE_CHECKING:
    from vlm_lora_xcomposer.configuration import XComposerConfig
    from vlm_lora_xcomposer.tokenization import Vocabulary


class Encoder:
    """Encodes conversations for one model.

    Args:
        vocabulary: Turns texts into ids.
        config: The model's configuration.
    """

    def __init__(self, vocabulary: Vocabulary, config: XComposerConfig) -> None:
        self._vocabulary = vocabulary
        self._image_id = int(config.image_token_id or 0)
        self._turn_end_id = config.turn_end_id
        ids = vocabulary.tokenizer.get_vocab()
        self._turn_start_id, self._begin_id, self._end_id = ids[TURN_START], ids[BEGIN], ids[END]
        self._header = len(vocabulary.token_ids(ANSWER_HEADER, special=True))
        self._lone_image_comes_first = config.variant == XCOMPOSER2_5

    def encode(self, example: Example, image_tokens: Sequence[int]) -> Encoded:
        """Return a conversation to train on.

        Args:
            example: The conversation.
            image_tokens: Tokens that each image takes.

        Raises:
            DataError: The turns or image marks do not allow it, or nothing would be learnt.
        """
        if example.verbatim:
            encoded = self._encode_text(upstream_text(example.messages), example, image_tokens)
            encoded.labels = self._upstream_labels(encoded.ids)
        else:
            _check_turns(example)
            check_ends_with_answer(example.messages, example.origin)
            encoded = self._encode_turns(example.messages, example, image_tokens)
            encoded.append([*self._text_ids("\n", example), self._end_id], supervised=True)
        if not encoded.supervised:
            raise DataError(
                f"{example.origin}: there is no answer to learn from",
                fix="Begin with a question, end with an answer.",
            )
        return encoded

    def cut(self, encoded: Encoded, length: int, *, verbatim: bool) -> Encoded:
        """Return a row without its end. Upstream masks a row with images before it cuts, and one without after."""
        ids, labels = encoded.ids[:length], encoded.labels[:length]
        if verbatim and not encoded.blocks:
            labels = self._upstream_labels(ids)
        return Encoded(ids, labels, encoded.blocks)

    def encode_prompt(self, example: Example, image_tokens: Sequence[int]) -> Encoded:
        """Return everything before the last answer, and the header of that answer.

        Raises:
            DataError: The turns or image marks do not allow it.
        """
        turns = example.messages
        if turns and turns[-1].role == "assistant":
            turns = turns[:-1]
        if example.verbatim:
            text = upstream_text([*turns, Message("assistant", "")])
            return self._encode_text(text[: text.rindex(ANSWER_HEADER) + len(ANSWER_HEADER)], example, image_tokens)
        _check_turns(example)
        encoded = self._encode_turns(turns, example, image_tokens)
        encoded.append([*self._text_ids("\n", example), self._turn_start_id, *self._text_ids("assistant\n", example)])
        return encoded

    def _upstream_labels(self, ids: Sequence[int]) -> list[int]:
        row = torch.tensor(ids)
        row = row.masked_fill(row == self._image_id, IGNORE_INDEX)
        labels: list[int] = upstream_labels(
            row, turn_end_id=self._turn_end_id, end_id=self._end_id, header=self._header
        ).tolist()
        return labels

    def _encode_text(self, text: str, example: Example, image_tokens: Sequence[int]) -> Encoded:
        """Encode a whole prompt as upstream does, ``<s>`` before the first piece of text."""
        if self._lone_image_comes_first and len(image_tokens) == 1 and IMAGE_MARK not in text:
            text = IMAGE_MARK + text
        encoded, begin = Encoded(), [self._begin_id]
        for part in _parts(text, example, image_tokens):
            if isinstance(part, int):
                encoded.append_image([self._image_id] * part)
            elif part:
                encoded.append([*begin, *self._text_ids(part, example, special=True)])
                begin = []
        return encoded

    def _encode_turns(self, turns: Sequence[Message], example: Example, image_tokens: Sequence[int]) -> Encoded:
        """Encode turns up to the last one's end, without the new line behind it."""
        encoded = Encoded()
        encoded.append([self._begin_id])
        new_line = self._text_ids("\n", example)
        counts = iter(image_tokens)
        for number, turn in enumerate(turns):
            answer = turn.role == "assistant"
            encoded.append([*(new_line if number else ()), self._turn_start_id])
            text = turn.content.strip()
            if answer:
                encoded.append(self._text_ids(f"{turn.role}\n", example))
                encoded.append(self._text_ids(text, example), supervised=True)
            else:
                for part in _interleaved(f"{turn.role}\n{text}".split(IMAGE_MARK), counts):
                    if isinstance(part, int):
                        encoded.append_image([self._image_id] * part)
                    else:
                        encoded.append(self._text_ids(part, example))
            encoded.append([self._turn_end_id], supervised=answer)
        return encoded

    def _text_ids(self, text: str, example: Example, *, special: bool = False) -> list[int]:
        ids = self._vocabulary.token_ids(text, special=special)
        if self._image_id in ids:
            spelling = self._vocabulary.tokenizer.convert_ids_to_tokens(self._image_id)
            raise DataError(
                f"{example.origin}: a text holds {spelling}, or another spelling of it",
                why="That token marks an image's place, so the model would look for an image there.",
                fix="Remove it, or write the row with `messages`, where it is read as plain text.",
            )
        return ids


def _parts(text: str, example: Example, image_tokens: Sequence[int]) -> Iterator[str | int]:
    texts = text.split(IMAGE_MARK)
    if len(texts) - 1 != len(image_tokens):
        raise DataError(
            f"{example.origin}: {len(texts) - 1} {UPSTREAM_MARK} in the conversation, {len(image_tokens)} in `image`",
            why="Upstream leaves a place without an image out, and puts an image without a place behind the answer.",
            fix=f"Write one {UPSTREAM_MARK} for each image, where it belongs in the text.",
        )
    return _interleaved(texts, iter(image_tokens))


def _interleaved(texts: Iterable[str], counts: Iterator[int]) -> Iterator[str | int]:
    """Yield texts with the next image's number of tokens between any two."""
    for number, text in enumerate(texts):
        if number:
            yield next(counts)
        yield text


def _check_turns(example: Example) -> None:
    """Check the order of roles and the images of a row with ``messages``.

    Raises:
        DataError: They do not fit the prompt.
    """
    check_alternating(example, why="XComposer was trained on questions and answers that alternate.")
    check_image_marks(example, "XComposer")
    if any(UPSTREAM_MARK in message.content for message in example.messages):
        raise DataError(
            f"{example.origin}: a message holds {UPSTREAM_MARK}, which marks images in upstream's own rows",
            why="In rows with `messages` it would be read as plain text and the image never be seen.",
            fix=f"Write {IMAGE_MARK} in its place and the path into `images`.",
        )
