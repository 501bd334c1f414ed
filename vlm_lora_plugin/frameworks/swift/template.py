"""The template of every family: the adapter's processor, behind the methods that Swift calls.

Training rows do not come through here: they are read and encoded by the very dataset that the Trainer gets.
The template serves inference, and whoever calls ``template.encode`` from Python, with the same processor.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from swift.template import Template

from vlm_lora_plugin.contract.example import Example
from vlm_lora_plugin.data.image_sources import parse_image
from vlm_lora_plugin.data.images import open_image
from vlm_lora_plugin.data.reading import RowFormat, parse_row
from vlm_lora_plugin.errors import DataError
from vlm_lora_plugin.frameworks.swift.families import family_of_type

if TYPE_CHECKING:
    from swift.template import StdTemplateInputs
    from torch import nn

    from vlm_lora_plugin.contract import Processor
    from vlm_lora_plugin.frameworks.swift.loader import SwiftProcessor

ORIGIN = "the request"
"""What error messages call a conversation that did not come from a data file."""


class VlmLoraTemplate(Template):  # type: ignore[misc]  # Swift is untyped
    """Encodes, batches and decodes through the adapter's processor."""

    _processor_inited: bool

    def init_processor(self, processor: SwiftProcessor | None) -> None:
        """Take the processor over; its tokenizer need have no more than an adapter's processor promises."""
        if processor is None or self._processor_inited:
            return
        self._processor_inited = True
        self.processor, self.model_info, self.model_meta = processor, processor.model_info, processor.model_meta
        self.config, self.task_type = self.model_info.config, self.model_info.task_type
        self.root_image_dir = None
        meta = self.template_meta
        meta.stop_words, meta.suffix_stop, meta.stop_token_id = [], None, processor.tokenizer.eos_token_id

    @property
    def inner(self) -> Processor:
        """The adapter's processor."""
        inner: Processor = self.processor.inner
        return inner

    def _encode_truncated(self, inputs: StdTemplateInputs) -> dict[str, Any]:
        encoded = self._encode(inputs)
        return {**encoded, "length": len(encoded["input_ids"])}

    def _encode(self, inputs: StdTemplateInputs) -> dict[str, torch.Tensor]:
        """Return the processor's tensors: for training with labels, for generation without the last answer."""
        family = family_of_type(self.model_info.model_type)
        system = self.template_meta.default_system if inputs.system is None else inputs.system
        first = [{"role": "system", "content": system}] if system else []
        _refuse_unsupported(inputs)
        row = {"messages": [*first, *inputs.messages], "images": [str(n) for n, _ in enumerate(inputs.images)]}
        example: Example = replace(
            parse_row(row, Path(), ORIGIN, RowFormat.of(family)), images=tuple(_image(image) for image in inputs.images)
        )
        if not self.is_training:
            return self.inner.encode_prompt(example)
        return self.inner.encode(example, max_length=self.max_length, truncation_strategy=self.truncation_strategy)

    def data_collator(self, batch: Sequence[Mapping[str, Any]], *, padding_to: int | None = None) -> dict[str, Any]:
        """Return the processor's batch of encoded rows."""
        rows = [{key: value for key, value in row.items() if _is_tensors(value)} for row in batch]
        return dict(self.inner.collate(rows))

    def register_post_encode_hook(self, models: Sequence[nn.Module]) -> None:
        """Do nothing: the models take what the processor gives as it is."""

    def prepare_generate_kwargs(self, generate_kwargs: dict[str, Any], *, model: Any = None) -> dict[str, Any]:
        """Return them unchanged: the generation ends at the model's own end token."""
        return generate_kwargs

    def decode_generate_ids(self, generate_ids: Sequence[int], **_: Any) -> str:
        """Return the text of generated tokens."""
        text: str = self.inner.tokenizer.batch_decode(torch.tensor([list(generate_ids)]), skip_special_tokens=True)[0]
        return text.strip()


def _refuse_unsupported(inputs: StdTemplateInputs) -> None:
    found = [name for name in ("videos", "audios", "objects", "tools") if getattr(inputs, name, None)]
    if found:
        raise DataError(f"{ORIGIN}: {', '.join(found)} are not supported", fix="Give text and images only.")


def _image(image: Any) -> Path | bytes:
    if isinstance(image, (bytes, Path)):
        return image
    if isinstance(image, (str, Mapping)):
        found = parse_image(image, Path(), ORIGIN)
        return _existing(found) if isinstance(found, Path) else found
    file = io.BytesIO()
    with open_image(image, origin=ORIGIN) as opened:
        opened.save(file, "PNG")  # lossless
    return file.getvalue()


def _existing(path: Path) -> Path:
    """Return a path that is a file; Swift looks for relative ones elsewhere than training does.

    Raises:
        DataError: It is none.
    """
    if path.is_file() or path.is_absolute():  # of the latter, opening says what is wrong
        return path
    raise DataError(
        f"{ORIGIN}: there is no image {path} in {Path.cwd()}",
        why="A relative path is looked up beside the data file, where there is one, and in the working directory.",
        fix="Put the image there, or write its absolute path.",
    )


def _is_tensors(value: object) -> bool:
    """Return whether a value is a tensor, or a list of them: images whose sizes differ."""
    items = value if isinstance(value, list) and value else [value]
    return all(isinstance(item, torch.Tensor) for item in items)
