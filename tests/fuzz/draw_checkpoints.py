"""Output folders of jobs as full disks, crashes and bad memory leave them, and what going on with one makes of it."""

from __future__ import annotations

import io
import random
import shutil
from pathlib import Path
from typing import Any

from evil import damaged
from fuzzing import Kind, Silent
from rich.console import Console

from vlm_lora_plugin.job.train import run
from vlm_lora_plugin.job.train_job import TrainJob
from vlm_lora_plugin.loading import load
from vlm_lora_plugin.preparation import load_adapter

RECIPE: dict[str, Any] = {
    "components": {"vision": "lora", "language": "lora"},
    "lora": {"r": 2, "lora_alpha": 4},
    "training": {"max_steps": 3, "gradient_accumulation_steps": 1, "save_steps": 1, "save_total_limit": None},
    "data": {"max_length": 512},
}


class Bench:
    """A job of three steps whose last checkpoint is missing, and what it ends with when it is not interrupted."""

    def __init__(self, folder: Path, model: Path, data: Path) -> None:
        self.model, self.data = model, data
        self.whole, self.output = folder / "whole", folder / "out"
        self.console = Console(file=io.StringIO(), width=200)
        run(self._job(self.whole), self.console)
        self.wanted = _tensors(self.whole / "adapter")
        self.loaded = self._loaded(self.whole / "adapter")
        self.interrupted = folder / "interrupted"
        shutil.copytree(self.whole, self.interrupted)
        shutil.rmtree(self.interrupted / "checkpoints/checkpoint-3")
        shutil.rmtree(self.interrupted / "adapter")

    def resuming(self) -> Kind[Path]:
        """Jobs whose newest checkpoint is damaged, gone on with."""
        return Kind("job", lambda source: self._draw(source, self.interrupted, "checkpoints/checkpoint-2"), self._go_on)

    def loading(self) -> Kind[Path]:
        """Finished adapters that are damaged, loaded onto their base."""
        return Kind("adapter", lambda source: self._draw(source, self.whole, "adapter"), self._load)

    def _job(self, output: Path, *, resume: bool = False) -> TrainJob:
        recipe = None if resume else RECIPE
        return TrainJob(self.model, self.data, output, recipe=recipe, resume=resume, check_images=False)

    def _draw(self, source: random.Random, whole: Path, inside: str) -> tuple[str, Path]:
        shutil.rmtree(self.output, ignore_errors=True)
        shutil.copytree(whole, self.output)
        file = source.choice(sorted(file for file in (self.output / inside).rglob("*") if file.is_file()))
        way = source.randrange(4)
        if way == 0:
            file.unlink()
            return f"no {file.name}", self.output
        if way == 1:
            file.write_bytes(b"")
            return f"{file.name}: empty", self.output
        what, content = damaged(source, file.read_bytes())
        file.write_bytes(content)
        return f"{file.name}: {what}", self.output

    def _go_on(self, output: Path) -> None:
        run(self._job(output, resume=True), self.console)
        if _tensors(output / "adapter") != self.wanted:
            raise Silent("going on from it ends with another adapter")

    def _load(self, output: Path) -> None:
        if self._loaded(output / "adapter") != self.loaded:
            raise Silent("it loads, as another model")

    def _loaded(self, adapter: Path) -> dict[str, bytes]:
        base, _ = load(self.model)
        model = load_adapter(base, adapter)
        return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def _tensors(adapter: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in adapter.rglob("*.safetensors")}
