"""The family plugin under test: its tiny model, a little data, and a short training run that promises share."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image

from vlm_lora_plugin.contract import Architecture, Family, Processor
from vlm_lora_plugin.contract.example import IMAGE_MARK, Example, Message
from vlm_lora_plugin.errors import AdapterError
from vlm_lora_plugin.loading import load
from vlm_lora_plugin.parity.demo import write_rows
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.preparation import prepare

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vlm_lora_plugin.prepared.model import VlmLoraPeftModel
    from vlm_lora_plugin.testing.contract import WriteModel
    from vlm_lora_plugin.testing.short_run import ShortRun

RED, BLUE = (220, 20, 20), (20, 20, 220)


class Data(NamedTuple):
    """Files of rows: images of all shapes, answers of all lengths, some without an image."""

    train: Path
    validation: Path


class Subject:
    """What the promises of one family plugin are checked on; everything is made when it is first needed.

    Args:
        name: The family's name.
        work: An empty folder for what is written.
        model: A small model folder, or a function that writes one; None for the family's ``TestSupport``.
    """

    def __init__(self, name: str, work: Path, model: Path | WriteModel | str | None = None) -> None:
        self.name, self.work, self._model = name, work, model

    @cached_property
    def family(self) -> Family:
        """What it says of itself."""
        return get_manager().family(self.name)

    @cached_property
    def folder(self) -> Path:
        """The small model's folder.

        Raises:
            AdapterError: None was given, and the family's TestSupport writes none.
        """
        given = self._model
        if isinstance(given, str) and ":" in given:
            module, _, function = given.partition(":")
            given = getattr(import_module(module), function)
        if isinstance(given, (str, Path)):
            return Path(given)
        write = given or self._own_writer()
        if write is None:
            raise AdapterError(
                f"There is no model to try the family {self.name} on",
                why="Its TestSupport has no write_tiny_model.",
                fix="Give one there, or model= a small model's folder or a function that writes one.",
            )
        folder = self.work / "model"
        write(folder)
        return folder

    def _own_writer(self) -> WriteModel | None:
        write = self.family.test_support.write_tiny_model
        return None if write is None else get_manager().function(self.family, write)

    def model(self) -> PreTrainedModel:
        """Load it anew: fp32, on the CPU, in eval mode."""
        return load(self.folder, dtype=torch.float32)[0]

    @cached_property
    def plain(self) -> PreTrainedModel:
        """The loaded model, which no promise may change."""
        return self.model()

    @cached_property
    def processor(self) -> Processor:
        """Its processor."""
        return load(self.folder, device="meta")[1]

    @cached_property
    def architecture(self) -> Architecture:
        """What the family says that the model is made of."""
        return get_manager().architecture(self.family, self.plain)

    @cached_property
    def data(self) -> Data:
        """Rows on disk, for runs."""
        folder = self.work / "data"
        return Data(write_rows(folder, "train", 0, 8), write_rows(folder, "validation", 50, 2))

    def prepared(self, preset: str | None = None, **document: Any) -> VlmLoraPeftModel:
        """Load the model and prepare it by a preset, the default one for None, with a document laid over it."""
        return prepare(self.model(), {"preset": preset or self.family.default_preset, **document})

    @cached_property
    def run(self) -> ShortRun:
        """Four steps of a Trainer, with checkpoints after the second and the fourth."""
        from vlm_lora_plugin.testing.short_run import ShortRun

        return ShortRun.train(self, self.work / "run")

    def batch(self, *examples: Example, labels: bool = True) -> dict[str, Any]:
        """Encode and collate examples."""
        batch = self.processor.collate([self.processor.encode(example) for example in examples])
        return batch if labels else {key: value for key, value in batch.items() if key != "labels"}


def example(
    question: str = "Which colour?", answer: str = "It is red.", *, images: Sequence[bytes] = (), origin: str = "row 1"
) -> Example:
    """Return one turn of question and answer, the images first."""
    turns = (Message("user", IMAGE_MARK * len(images) + question), Message("assistant", answer))
    return Example(turns, tuple(images), origin)


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (48, 40)) -> bytes:
    """Return a PNG of a gradient in a colour, so that each of its parts looks different."""
    shades = Image.linear_gradient("L").resize(size)
    file = io.BytesIO()
    Image.merge("RGB", [shades.point(lambda value, part=part: value * part // 255) for part in colour]).save(
        file, "PNG"
    )
    return file.getvalue()


def with_image(**changes: Any) -> Example:
    """Return a row with one red image."""
    return example(**{"images": [picture(RED)], **changes})


def text_only(**changes: Any) -> Example:
    """Return a row without an image."""
    return example(**{"question": "Say red, please.", **changes})


def inputs_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch without its labels."""
    return {key: value for key, value in batch.items() if key != "labels"}


@torch.no_grad()
def logits_of(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return the logits [B, T, V] of a batch, in eval mode."""
    was_training = model.training
    model.eval()
    try:
        logits: torch.Tensor = model(**inputs_of(batch)).logits
    finally:
        model.train(was_training)
    return logits


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference of two tensors, relative to the largest magnitude in the second."""
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))
