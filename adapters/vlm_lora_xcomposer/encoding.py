"""From the texts of a conversation to ids and labels; images are known by how many tokens they take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
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
from vlm_lora_xcomposer.prompt import (
    ANSWER_HEADER,
    BEGIN,
    END,
    TURN_START,
    conversation_text,
    turn_text,
    upstream_labels,
    upstream_text,
)
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
        if example.verbatim and example.by_roles:
            encoded = self._encode_by_roles(example, image_tokens)
        elif example.verbatim:
            encoded = self._encode_text(upstream_text(example.messages), example, image_tokens)
            encoded.labels = self._upstream_labels(encoded.ids)
        else:
            _check_turns(example)
            check_ends_with_answer(example.messages, example.origin)
            encoded = self._encode_turns(example.messages, example, image_tokens)
            ending = example.messages[-1].supervised
            encoded.append([*self._text_ids("\n", example), self._end_id], supervised=ending)
        if not encoded.supervised:
            raise DataError(
                f"{example.origin}: there is no answer to learn from",
                fix="Begin with a question, end with an answer.",
            )
        return encoded

    def cut(self, encoded: Encoded, length: int, *, as_upstream: bool) -> Encoded:
        """Return a row without its end. Upstream masks a row with images before it cuts, and one without after."""
        ids, labels = encoded.ids[:length], encoded.labels[:length]
        if as_upstream and not encoded.blocks:
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
            write = upstream_text
            if example.by_roles:
                _check_system(turns, example.origin)
                write = conversation_text
            text = write([*turns, Message("assistant", "")])
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
        if self._image_comes_first(text, image_tokens):
            text = IMAGE_MARK + text
        _check_places(text, example, image_tokens)
        encoded, begin = Encoded(), iter([self._begin_id])

        def ids_of(part: str) -> list[int]:
            return [*begin, *self._text_ids(part, example, special=True)] if part else []

        encoded.append_marked(text, ids_of, self._images(image_tokens))
        return encoded

    def _images(self, image_tokens: Iterable[int]) -> Iterator[list[int]]:
        """Yield the ids of each image."""
        return ([self._image_id] * tokens for tokens in image_tokens)

    def _image_comes_first(self, text: str, image_tokens: Sequence[int]) -> bool:
        return self._lone_image_comes_first and len(image_tokens) == 1 and IMAGE_MARK not in text

    def _encode_by_roles(self, example: Example, image_tokens: Sequence[int]) -> Encoded:
        """Encode a row of upstream's form, ids as :meth:`_encode_text` has them, the answers' labels by their roles.

        A turn at a time gives the same ids, because the tokenizer takes the text between control tokens by itself.
        """
        _check_system(example.messages, example.origin)
        whole = conversation_text(example.messages)
        _check_places(whole, example, image_tokens, lone=self._image_comes_first(whole, image_tokens))
        encoded, images = Encoded(), self._images(image_tokens)
        if self._image_comes_first(whole, image_tokens):
            encoded.append_image(next(images))
        encoded.append([self._begin_id])
        new_line = len(self._text_ids("\n", example))
        header = self._header - 1 - new_line  # from the start of a turn
        for turn in example.messages:
            begin = len(encoded.ids)
            encoded.append_marked(turn_text(turn), partial(self._text_ids, example=example, special=True), images)
            for at in range(begin + header, len(encoded.ids) - new_line) if turn.supervised else ():
                if encoded.ids[at] != self._image_id:
                    encoded.labels[at] = encoded.ids[at]
        if example.messages[-1].supervised:
            encoded.labels[-new_line:] = encoded.ids[-new_line:]
        encoded.append([self._end_id], supervised=example.messages[-1].supervised)
        return encoded

    def _encode_turns(self, turns: Sequence[Message], example: Example, image_tokens: Sequence[int]) -> Encoded:
        """Encode turns up to the last one's end, without the new line behind it."""
        encoded, images = Encoded(), self._images(image_tokens)
        encoded.append([self._begin_id])
        new_line = self._text_ids("\n", example)
        for number, turn in enumerate(turns):
            answer = turn.role == "assistant"
            encoded.append([*(new_line if number else ()), self._turn_start_id])
            text = turn.content.strip()
            if answer:
                encoded.append(self._text_ids(f"{turn.role}\n", example))
                encoded.append(self._text_ids(text, example), supervised=turn.supervised)
            else:
                encoded.append_marked(f"{turn.role}\n{text}", partial(self._text_ids, example=example), images)
            encoded.append([self._turn_end_id], supervised=turn.supervised)
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


def _check_places(text: str, example: Example, image_tokens: Sequence[int], *, lone: bool = False) -> None:
    """Refuse a row whose images and places do not match; ``lone``: its one image needs none."""
    marks = text.count(IMAGE_MARK)
    if marks != len(image_tokens) and not lone:
        raise DataError(
            f"{example.origin}: {marks} {UPSTREAM_MARK} in the conversation, {len(image_tokens)} in `image`",
            why="Upstream leaves a place without an image out, and puts an image without a place behind the answer.",
            fix=f"Write one {UPSTREAM_MARK} for each image, where it belongs in the text.",
        )


def _check_system(messages: Sequence[Message], origin: str) -> None:
    """Refuse a system message that is not the first, in a row of upstream's form.

    Raises:
        DataError: There is one.
    """
    for number, message in enumerate(messages[1:], 2):
        if message.role == "system":
            raise DataError(
                f"{origin}: turn {number} is the system's, not the first",
                why="The prompt has one place for a system message, before everything else.",
                fix="Put it first, or join it to a user's turn; data.upstream_labels: true takes it for an answer.",
            )


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
