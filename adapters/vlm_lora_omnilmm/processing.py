"""From a conversation to OmniLMM's ids, labels and pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vlm_lora_omnilmm.names import IMAGE_END, IMAGE_PATCH, IMAGE_START, IMAGE_TOKENS
from vlm_lora_omnilmm.prompt import render
from vlm_lora_omnilmm.tokenization import image_ids, load_tokenizer
from vlm_lora_omnilmm.weights import load_config
from vlm_lora_plugin.contract import LoadRequest
from vlm_lora_plugin.contract.example import IMAGE_MARK, Example, Message
from vlm_lora_plugin.data.collation import IGNORE_INDEX, pad_rows
from vlm_lora_plugin.data.pixels import load_pixels
from vlm_lora_plugin.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from vlm_lora_omnilmm.configuration import OmniLMMConfig


@dataclass
class _Encoded:
    """Ids and labels of equal length."""

    ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        return sum(label != IGNORE_INDEX for label in self.labels)


class OmniLMMProcessor:
    """Implements :class:`vlm_lora_plugin.contract.Processor` for OmniLMM.

    Args:
        tokenizer: From :func:`vlm_lora_omnilmm.tokenization.load_tokenizer`.
        image_size: Side length in pixels of what the vision tower takes (448 as published).
        num_query: Positions between ``<im_start>`` and ``<im_end>`` (64 as published).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, image_size: int, num_query: int) -> None:
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.num_query = num_query
        self.image_patch_id, self.image_start_id, self.image_end_id = image_ids(tokenizer)
        self._image_block = IMAGE_START + IMAGE_PATCH * num_query + IMAGE_END
        named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
        self._reserved = tuple(dict.fromkeys([*IMAGE_TOKENS, *(token for token in named if token)]))

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: OmniLMMConfig) -> OmniLMMProcessor:
        """Read the tokenizer of a model folder.

        Raises:
            ModelError: It is missing, cannot be read, or does not belong to the config.
        """
        processor = cls(load_tokenizer(folder), image_size=config.image_size, num_query=config.num_query)
        own = (processor.image_patch_id, processor.image_start_id, processor.image_end_id)
        if own != config.image_ids:
            raise ModelError(
                f"The tokenizer in {folder} gives {', '.join(IMAGE_TOKENS)} the ids {own}, "
                f"the model has {config.image_ids}",
                why="The model would not find its images in the prompt.",
                fix="Use the tokenizer and the config.json of one and the same model.",
            )
        return processor

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer, the image tokens included; sizes come from the model's config when it is read."""
        self.tokenizer.save_pretrained(folder)

    def encode(
        self, example: Example, *, max_length: int | None = None, truncation_strategy: str = "raise"
    ) -> dict[str, torch.Tensor]:
        """Turn a conversation that holds an answer into training tensors; opens the images.

        Args:
            example: User and assistant turns in alternation, a system message before them if wanted.
            max_length: Most tokens allowed, images included; None for no limit.
            truncation_strategy: ``raise``, or ``right`` to cut the end off, though never inside an image.

        Returns:
            ``input_ids`` [T] int64; ``labels`` [T] int64, -100 everywhere but on the answers and the ``</s>``
            after each; ``pixel_values`` [images, 3, S, S] fp32 if there are images.

        Raises:
            DataError: The turns, image marks, images or length do not allow it.
        """
        encoded = self._encode_training(example)
        images = example.images
        if max_length is not None and len(encoded.ids) > max_length:
            images = images[: self._shorten(encoded, example.origin, max_length, truncation_strategy)]
        tensors = {
            "input_ids": torch.tensor(encoded.ids, dtype=torch.int64),
            "labels": torch.tensor(encoded.labels, dtype=torch.int64),
        }
        return tensors | self._pixels(images, example.origin)

    def encode_prompt(self, example: Example) -> dict[str, torch.Tensor]:
        """Return ``input_ids`` [T] and ``pixel_values`` of everything before the last answer.

        An answer at the end is left out.

        Raises:
            DataError: The turns, image marks or images do not allow it.
        """
        turns = self._turns(example)
        if turns[-1].role == "assistant":
            turns = turns[:-1]
        encoded = self._encode_turns(turns, generation=True)
        return {"input_ids": torch.tensor(encoded.ids, dtype=torch.int64)} | self._pixels(
            example.images, example.origin
        )

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
            (prompts without labels: on the left); ``pixel_values`` [N, 3, S, S] with the images of all rows in
            order, absent when no row has one. The mask covers the ``</s>`` of an answer, though padding has the
            same id.
        """
        batch = pad_rows(features, pad_token_id=self.tokenizer.pad_token_id)
        pixels = [row["pixel_values"] for row in features if "pixel_values" in row]
        return {**batch, "pixel_values": torch.cat(pixels)} if pixels else batch

    def _encode_training(self, example: Example) -> _Encoded:
        encoded = self._encode_turns(self._turns(example), as_upstream=example.verbatim)
        if not encoded.supervised:
            raise DataError(
                f"{example.origin}: no assistant message, so there is nothing to learn",
                fix="End the conversation with an assistant message.",
            )
        return encoded

    def _turns(self, example: Example) -> list[Message]:
        """Return the turns with image blocks in place of image marks, checked for order and images."""
        messages = list(example.messages)
        start = 1 if messages and messages[0].role == "system" else 0
        if start == len(messages):
            raise DataError(f"{example.origin}: there is no user message", fix="Add a question and its answer.")
        for position, message in enumerate(messages[start:], start + 1):
            previous = messages[position - 2].role if position > start + 1 else None
            if message.role == "system" or message.role == previous:
                raise DataError(
                    f"{example.origin}: message {position} is the {message.role}'s, "
                    + ("not the first" if message.role == "system" else "as the one before it"),
                    why="Questions and answers must alternate, after at most one system message.",
                    fix="Join messages of one role, and put a system message first.",
                )
        # In the MiniCPM-V form upstream reads image marks in the first turn alone; later ones are text.
        marked = [number == start for number in range(len(messages))] if example.verbatim else [True] * len(messages)
        marks = [m.content.count(IMAGE_MARK) if has else 0 for m, has in zip(messages, marked, strict=True)]
        if any(count for m, count in zip(messages, marks, strict=True) if m.role != "user"):
            raise DataError(
                f"{example.origin}: {IMAGE_MARK} stands outside the user's messages",
                fix=f"Move {IMAGE_MARK} into a user message; OmniLMM reads images, it cannot answer with one.",
            )
        if sum(marks) != len(example.images):
            raise DataError(
                f"{example.origin}: {sum(marks)} {IMAGE_MARK} marks in the messages, {len(example.images)} images",
                fix=f"Write one {IMAGE_MARK} for each image, where it belongs in the text.",
            )
        self._refuse_reserved(example)
        return [
            Message(m.role, self._with_blocks(m.content, exact=example.verbatim) if count else m.content)
            for m, count in zip(messages, marks, strict=True)
        ]

    def _refuse_reserved(self, example: Example) -> None:
        for message in example.messages:
            found = next((token for token in self._reserved if token in message.content), None)
            if found:
                raise DataError(
                    f"{example.origin}: {found} stands in {message.content[:80]!r}",
                    why="The tokenizer reads it as the special token of this name.",
                    fix=f"Remove it; an image is written {IMAGE_MARK}.",
                )

    def _with_blocks(self, content: str, *, exact: bool) -> str:
        """Put image blocks in place of marks; unless the text is exact, a line break before text right behind one."""
        parts = content.split(IMAGE_MARK)
        text = parts[0]
        for part in parts[1:]:
            separate = not exact and part and not part[0].isspace()
            text += self._image_block + ("\n" if separate else "") + part
        return text

    def _encode_turns(
        self, turns: Sequence[Message], *, generation: bool = False, as_upstream: bool = False
    ) -> _Encoded:
        prompt = render(turns, self.tokenizer, generation=generation)
        answers = prompt.answers
        if as_upstream and answers and next(turn.role for turn in turns if turn.role != "system") == "assistant":
            # Upstream ends the n-th answer at the n-th user's mark after the first, which comes one answer too late.
            answers = ((answers[0][0], len(prompt.text)),)
        tokens = self.tokenizer(prompt.text, return_offsets_mapping=True)
        ids: list[int] = tokens.input_ids
        labels = [IGNORE_INDEX] * len(ids)
        for position, (start, end) in enumerate(tokens.offset_mapping):
            if end > start and any(first <= start < last for first, last in answers):
                labels[position] = ids[position]
        return _Encoded(ids, labels)

    def _shorten(self, encoded: _Encoded, origin: str, max_length: int, truncation_strategy: str) -> int:
        """Cut the end off; return how many images are left."""
        if truncation_strategy != "right":
            raise DataError(
                f"{origin}: {len(encoded.ids)} tokens are needed, max_length is {max_length}",
                fix="Raise data.max_length, or set data.truncation_strategy to right to cut the end off.",
            )
        starts = [position for position, token in enumerate(encoded.ids) if token == self.image_start_id]
        if any(start < max_length < start + self.num_query + 2 for start in starts):
            raise DataError(
                f"{origin}: cutting {len(encoded.ids)} tokens to max_length {max_length} would cut an image",
                why=f"An image takes {self.num_query + 2} tokens, and only whole ones have a meaning.",
                fix="Raise data.max_length, or use fewer images in this row.",
            )
        del encoded.ids[max_length:], encoded.labels[max_length:]
        if not encoded.supervised:
            raise DataError(
                f"{origin}: cut to max_length {max_length}, no token of an answer is left to learn from",
                fix="Raise data.max_length, or shorten the question.",
            )
        return sum(start < max_length for start in starts)

    def _pixels(self, images: Sequence[Path | bytes], origin: str) -> dict[str, torch.Tensor]:
        if not images:
            return {}
        return {"pixel_values": torch.stack([load_pixels(image, self.image_size, origin=origin) for image in images])}


def load_processor(request: LoadRequest) -> OmniLMMProcessor:
    """Build the processor of a folder.

    Raises:
        ModelError: The config is impossible, or the vocabulary is missing, broken, or not the config's.
    """
    config = load_config(request.folder)
    return OmniLMMProcessor.from_pretrained(request.folder, config)
