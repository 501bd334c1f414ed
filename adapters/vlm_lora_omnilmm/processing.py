"""From a conversation to OmniLMM's ids, labels and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lora_omnilmm.names import IMAGE_END, IMAGE_PATCH, IMAGE_START, IMAGE_TOKENS
from vlm_lora_omnilmm.prompt import render
from vlm_lora_omnilmm.tokenization import image_ids, load_tokenizer
from vlm_lora_omnilmm.weights import load_config
from vlm_lora_plugin.contract import IMAGE_MARK, Example, LoadRequest, Message
from vlm_lora_plugin.data.encoding import (
    IGNORE_INDEX,
    Encoded,
    EncodingProcessor,
    check_image_marks,
    check_reserved,
    load_pixels,
)
from vlm_lora_plugin.errors import DataError, ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from vlm_lora_omnilmm.configuration import OmniLMMConfig


class OmniLMMProcessor(EncodingProcessor):
    """Encodes conversations, and images as ``pixel_values`` [images, 3, S, S] fp32, for OmniLMM.

    Of a row that is cut off, images that stand wholly behind the cut are left out, as upstream does.

    Args:
        tokenizer: From :func:`vlm_lora_omnilmm.tokenization.load_tokenizer`.
        image_size: Side length in pixels of what the vision tower takes (448 as published).
        num_query: Positions between ``<im_start>`` and ``<im_end>`` (64 as published).
    """

    image_span: int
    drops_images = True

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, image_size: int, num_query: int) -> None:
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.image_span = num_query + 2  # with <im_start> and <im_end>
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

    def encode_row(self, example: Example, image_tokens: Sequence[int], *, answered: bool) -> Encoded:
        """Return the tokens of user and assistant turns in alternation, a system message before them if wanted."""
        turns = self._turns(example)
        if not answered:
            return self._encode_turns(turns[:-1] if turns[-1].role == "assistant" else turns, generation=True)
        encoded = self._encode_turns(turns, as_upstream=example.verbatim and not example.by_roles)
        if not encoded.supervised:
            raise DataError(
                f"{example.origin}: no assistant message is learnt from, so there is nothing to learn",
                fix="End the conversation with an assistant message.",
            )
        return encoded

    def load_image(self, image: Path | bytes, origin: str) -> torch.Tensor:
        """Return the pixels ``[3, S, S]`` of an image stretched to a square."""
        return load_pixels(image, self.image_size, origin=origin)

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
        check_image_marks(example, "OmniLMM", marked=marked)
        check_reserved(example, self._reserved)
        return [
            replace(m, content=self._with_blocks(m.content, exact=example.verbatim)) if has else m
            for m, has in zip(messages, marked, strict=True)
        ]

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
    ) -> Encoded:
        prompt = render(turns, self.tokenizer, generation=generation)
        spoken = [turn for turn in turns if turn.role == "assistant"]
        answers = tuple(span for span, turn in zip(prompt.answers, spoken, strict=True) if turn.supervised)
        if as_upstream and answers and next(turn.role for turn in turns if turn.role != "system") == "assistant":
            # Upstream ends the n-th answer at the n-th user's mark after the first, which comes one answer too late.
            answers = ((answers[0][0], len(prompt.text)),)
        tokens = self.tokenizer(prompt.text, return_offsets_mapping=True)
        ids: list[int] = tokens.input_ids
        labels = [IGNORE_INDEX] * len(ids)
        for position, (start, end) in enumerate(tokens.offset_mapping):
            if end > start and any(first <= start < last for first, last in answers):
                labels[position] = ids[position]
        starts = [position for position, token in enumerate(ids) if token == self.image_start_id]
        return Encoded(ids, labels, [(start, start + self.image_span) for start in starts])


def load_processor(request: LoadRequest) -> OmniLMMProcessor:
    """Build the processor of a folder.

    Raises:
        ModelError: The config is impossible, or the vocabulary is missing, broken, or not the config's.
    """
    return OmniLMMProcessor.from_pretrained(request.folder, load_config(request))
