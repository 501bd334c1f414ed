"""A processor of transformers with a chat template, as the processor of a family."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import torch
from jinja2 import TemplateError
from PIL import Image

from vlm_lora_plugin.contract.example import IMAGE_MARK, Example, Message
from vlm_lora_plugin.data.collation import IGNORE_INDEX
from vlm_lora_plugin.data.encoding.conversations import (
    check_alternating,
    check_ends_with_answer,
    check_image_marks,
    check_reserved,
)
from vlm_lora_plugin.data.encoding.encoded import Encoded
from vlm_lora_plugin.data.encoding.fitting import FittingProcessor
from vlm_lora_plugin.data.pixels import read_rgb
from vlm_lora_plugin.errors import DataError, ModelError, RecipeError, nearest

if TYPE_CHECKING:
    from transformers import ProcessorMixin

_PROBE = (Message("user", "Question?"), Message("assistant", "Answer."))


class _Prompt(NamedTuple):
    """A conversation as text, and the first character and one past the last of each answer with its end mark.

    ``learnt`` says of each answer whether it is.
    """

    text: str
    answers: tuple[tuple[int, int], ...] = ()
    learnt: tuple[bool, ...] = ()


class ChatTemplateProcessor(FittingProcessor):
    """Implements :class:`vlm_lora_plugin.contract.Processor` and ``MeasuringProcessor`` with one of transformers.

    The template renders a conversation up to each answer, so labels need no ``{% generation %}`` marks in it; they are
    exactly an answer's text and what the template writes to end it, and each row is checked for that. Every further
    key that the processor returns travels with the row: ``pixel_values``, ``image_grid_thw``, ``mm_token_type_ids``.

    Args:
        processor: A processor with a fast tokenizer and a chat template.
        end_mark: What to write behind an answer where the template writes nothing (LLaVA-1.5's): the token that ends
            a text, ``</s>``.

    Attributes:
        stop_token_ids: What ends an answer when it is generated.

    Raises:
        ModelError: It takes text alone, has no chat template, or an answer cannot be found in what that writes, or has
            no end.
    """

    pad_images = True

    def __init__(self, processor: ProcessorMixin, *, end_mark: str = "") -> None:
        if not hasattr(processor, "tokenizer"):
            raise ModelError(
                f"A {type(processor).__name__} is not a processor of images and text",
                fix="Give the folder of a vision-language model, its preprocessor_config.json included.",
            )
        self.processor: Any = processor
        self.tokenizer = self.processor.tokenizer
        self.end_mark = end_mark
        self._template = self.processor.chat_template or self.tokenizer.chat_template
        if self._template is None:
            raise ModelError(
                f"This {type(processor).__name__} has no chat template",
                why="It says how a conversation is written for the model.",
                fix="Put the chat_template.jinja of the published instruction-tuned model into the folder.",
            )
        image_token = getattr(self.processor, "image_token", None)
        reserved = [*([image_token] if image_token else ()), *self.tokenizer.all_special_tokens]
        self._reserved = tuple(token for token in dict.fromkeys(map(str, reserved)) if token != IMAGE_MARK)
        probe = self._answered(_PROBE, "the chat template")
        mark = probe.text[probe.answers[0][0] + len(_PROBE[1].content) : probe.answers[0][1]].strip()
        ids = self.tokenizer(mark, add_special_tokens=False).input_ids
        ends = [*(ids if len(ids) == 1 else ()), self.tokenizer.eos_token_id]
        self.stop_token_ids = tuple(dict.fromkeys(token for token in ends if token is not None))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, options: Mapping[str, Any] | None = None, **arguments: Any
    ) -> ChatTemplateProcessor:
        """Read the processor of a model folder; no remote code is run, nothing is downloaded.

        Args:
            folder: The model folder.
            options: The recipe's ``data.processor``: settings of the image processor, ``{"max_pixels": 602112}``.
                Each becomes an attribute, too.
            **arguments: As the class takes them.

        Raises:
            ModelError: It cannot be read, or cannot be used.
            RecipeError: The image processor does not have such a setting.
        """
        from transformers import AutoProcessor

        settings = dict(options or {})
        try:
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise ModelError(
                f"The processor in {folder} cannot be read: {str(error) or type(error).__name__}",
                fix="Download the whole model folder, its tokenizer and preprocessor_config.json included.",
            ) from error
        if settings:  # given to the whole processor, they would reach the tokenizer, too
            _refuse_unknown(settings, processor)
            kind = type(processor.image_processor)
            processor.image_processor = kind.from_pretrained(folder, local_files_only=True, **settings)
        made = cls(processor, **arguments)
        vars(made).update(settings)
        return made

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the processor of transformers."""
        self.processor.save_pretrained(folder)

    def encode(
        self, example: Example, *, max_length: int | None = None, truncation_strategy: str = "raise"
    ) -> dict[str, Any]:
        """Turn a conversation that ends with an answer into training tensors; opens the images.

        Args:
            example: User and assistant turns in alternation, a system message before them if wanted.
            max_length: Most tokens allowed, images included; None for no limit.
            truncation_strategy: ``raise``, or ``right`` to cut the end off, though never inside an image.

        Returns:
            ``input_ids`` [T] int64; ``labels`` [T] int64, -100 everywhere but on the answers and what ends each; every
            further key that the processor returns.

        Raises:
            DataError: The turns, image marks, images or length do not allow it, or the labels would not be the answers.
            ModelError: The chat template or the processor cannot be used.
        """
        prompt = self._training_prompt(example)
        encoded = self._encoded(prompt, self._images(example), example.origin)
        return self.fitted(encoded, example, max_length, truncation_strategy).tensors(labels=True)

    def encode_prompt(self, example: Example) -> dict[str, Any]:
        """Return ``input_ids`` [T] of everything before the last answer, and every further key of the processor.

        Raises:
            DataError: The turns, image marks or images do not allow it.
        """
        self._check(example)
        turns = example.messages[:-1] if example.messages[-1].role == "assistant" else example.messages
        prompt = self._answered(turns, example.origin, generation=True)
        return self._encoded(prompt, self._images(example), example.origin).tensors(labels=False)

    def count_tokens(self, example: Example) -> tuple[int, int]:
        """Return (tokens, supervised tokens) of the untruncated example; reads image headers, no pixels.

        Raises:
            DataError: The turns, image marks or images do not allow training on it.
        """
        return self.measure(example, self.image_sizes(example))

    def measure(
        self,
        example: Example,
        image_sizes: Sequence[tuple[int, int]],
        *,
        max_length: int | None = None,
        truncation_strategy: str = "raise",
    ) -> tuple[int, int]:
        """Return (tokens, supervised tokens) that :meth:`encode` would give, from blank images of these sizes.

        Args:
            example: The conversation.
            image_sizes: (width, height) in pixels of each image.
            max_length: As in :meth:`encode`.
            truncation_strategy: As in :meth:`encode`.

        Raises:
            DataError: What :meth:`encode` would raise.
        """
        prompt = self._training_prompt(example)
        encoded = self._encoded(prompt, [Image.new("RGB", size) for size in image_sizes], example.origin)
        encoded = self.fitted(encoded, example, max_length, truncation_strategy)
        return len(encoded.ids), encoded.supervised

    def _images(self, example: Example) -> list[Image.Image]:
        turned = self.exif_transpose
        return [read_rgb(image, origin=example.origin, exif_transpose=turned) for image in example.images]

    def _training_prompt(self, example: Example) -> _Prompt:
        self._check(example)
        check_ends_with_answer(example.messages, example.origin)
        return self._answered(example.messages, example.origin)

    def _check(self, example: Example) -> None:
        check_alternating(example, why="Chat templates are written for questions and answers that alternate.")
        check_image_marks(example, "the model")
        check_reserved(example, self._reserved)

    def _rendered(self, turns: Sequence[Message], origin: str, *, generation: bool = False) -> str:
        messages = [{"role": turn.role, "content": _parts(turn.content)} for turn in turns]
        try:
            text: str = self.processor.apply_chat_template(
                messages, chat_template=self._template, add_generation_prompt=generation, tokenize=False
            )
        except TemplateError as error:
            raise DataError(
                f"{origin}: the chat template refuses the conversation: {error}",
                fix="Write the row as the model's template wants it; some know no system message.",
            ) from error
        return text

    def _answered(self, turns: Sequence[Message], origin: str, *, generation: bool = False) -> _Prompt:
        """Return a conversation as text, with the places of its answers, each with its end."""
        whole = self._rendered(turns, origin, generation=generation)
        text, answers, done = "", [], 0
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self._rendered(turns[:number], origin, generation=True)
            after = self._rendered(turns[: number + 1], origin).rstrip()
            said = turn.content.strip()
            start = whole.find(said, len(before))
            if not whole.startswith(before) or not whole.startswith(after) or whole[len(before) : start].strip():
                raise ModelError(
                    f"{origin}: the chat template writes a conversation differently when it goes on",
                    why="The answers cannot be told from the rest of the text.",
                    fix="Use a template that keeps earlier turns, and whose generation prompt ends before an answer.",
                )
            text += whole[done:start]
            begin, done = len(text), len(after)
            text += whole[start:done]
            if not whole[start + len(said) : done].strip():
                text += self._own_end(origin)
            answers.append((begin, len(text)))
        self._check_system(turns, whole, origin)
        learnt = tuple(turn.supervised for turn in turns if turn.role == "assistant")
        return _Prompt(text + whole[done:], tuple(answers), learnt)

    def _check_system(self, turns: Sequence[Message], whole: str, origin: str) -> None:
        """Refuse a system message that the template leaves out."""
        for turn in turns:
            if turn.role == "system" and turn.content.strip() not in whole:
                raise DataError(
                    f"{origin}: the chat template leaves the system message out",
                    why="The model would be trained without it.",
                    fix="Write it into the user's first message, or remove it.",
                )

    def _own_end(self, origin: str) -> str:
        if not self.end_mark:
            raise ModelError(
                f"{origin}: the chat template writes nothing behind an answer",
                why="The model would never learn to end one.",
                fix=f"Give ChatTemplateProcessor an end_mark, such as end_mark={self.tokenizer.eos_token!r}.",
            )
        return self.end_mark

    def _encoded(self, prompt: _Prompt, images: Sequence[Image.Image], origin: str) -> Encoded:
        bos = self.tokenizer.bos_token
        returned = self.processor(
            text=[prompt.text],
            images=[list(images)] if images else None,
            return_tensors="pt",
            return_offsets_mapping=True,
            return_text_replacement_offsets=True,
            **({"add_special_tokens": False} if bos and prompt.text.startswith(bos) else {}),
        )
        values = dict(returned)
        offsets = values.pop("offset_mapping")[0].tolist()
        replaced = (values.pop("text_replacement_offsets", None) or [[]])[0]
        if len(replaced) != len(images):
            raise ModelError(
                f"{origin}: {type(self.processor).__name__} told the places of {len(replaced)} of {len(images)} images",
                why="Rows could be cut inside an image, and answers not be told from the rest.",
                fix="Install the newest transformers that is supported; else the family needs a processor of its own, "
                "derived from EncodingProcessor.",
            )
        values.pop("attention_mask", None)  # a single row has no padding
        row = values.pop("input_ids")
        ids: list[int] = row[0].tolist()
        labels = [IGNORE_INDEX] * len(ids)
        spans = zip(prompt.answers, prompt.learnt, _moved(prompt.answers, replaced), strict=True)
        for answer, learnt, moved in spans:
            places = _tokens_in(offsets, *moved)
            self._check_labels([ids[at] for at in places], prompt.text[slice(*answer)], origin)
            for at in places if learnt else ():
                labels[at] = ids[at]
        blocks = [_tokens_in(offsets, *image["new_span"]) for image in replaced]
        extra = {key: value[0] if _like(value, row) else value for key, value in values.items()}
        return Encoded(ids, labels, [(block[0], block[-1] + 1) for block in blocks], extra)

    def _check_labels(self, labels: list[int], answer: str, origin: str) -> None:
        """Refuse labels that are not exactly an answer and its end."""
        alone = self.tokenizer(answer, add_special_tokens=False).input_ids  # reads back what a normalizer changes
        read, expected = self._decoded(labels), {answer.strip(), self._decoded(alone)}
        if read not in expected:
            raise DataError(
                f"{origin}: an answer with its end is {answer.strip()[:80]!r}, its labels read {read[:80]!r}",
                why="The model would learn something else than the answer.",
                fix="Is a special token of the chat template missing from the tokenizer? Use the two of one model.",
            )

    def _decoded(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text.strip()


def _refuse_unknown(options: Mapping[str, Any], processor: Any) -> None:
    """Refuse settings that an image processor does not have; the library leaves them out.

    Raises:
        RecipeError: There are some.
    """
    known = get_type_hints(processor.image_processor.valid_kwargs)
    for name in options:
        if name not in known:
            raise RecipeError(
                f"data.processor.{name}: the {type(processor.image_processor).__name__} has no such setting",
                fix=nearest(name, list(known)),
            )


def _parts(content: str) -> list[dict[str, str]]:
    """Return a message's content as chat templates take it: texts with images between them."""
    parts: list[dict[str, str]] = []
    for number, text in enumerate(content.split(IMAGE_MARK)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": text}] if text else []
    return parts or [{"type": "text", "text": ""}]


def _moved(spans: Sequence[tuple[int, int]], replaced: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Return where spans of characters begin and end after the images' placeholders were replaced by longer ones."""
    ends = [image["span"][1] for image in replaced]
    gained = [0, *(image["new_span"][1] - image["span"][1] for image in replaced)]
    return [(start + gained[bisect_right(ends, start)], end + gained[bisect_right(ends, end)]) for start, end in spans]


def _tokens_in(offsets: Sequence[Sequence[int]], start: int, end: int) -> list[int]:
    """Return the places of the tokens that share a character with a span of text."""
    return [at for at, (first, last) in enumerate(offsets) if first < end and last > start]


def _like(value: Any, row: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == row.shape
