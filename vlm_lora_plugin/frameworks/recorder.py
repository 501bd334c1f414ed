"""What a training run does, written down exactly: one recorder for every framework.

It draws no random numbers and changes nothing. A line of the file is one event; numbers that are compared are written
with all their bits (``float.hex``), tensors as digests.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlm_lora_plugin.errors import TrainingError
from vlm_lora_plugin.frameworks.digests import tensor_digest, text_digest
from vlm_lora_plugin.prepared.model import find_prepared

if TYPE_CHECKING:
    from vlm_lora_plugin.prepared.model import VlmLoraPeftModel

RECORD_VARIABLE = "VLM_LORA_PARITY_RECORD"
"""Environment variable with the folder that a Swift run is recorded in."""

LOGGED = ("loss", "grad_norm", "eval_loss")


def record_file(folder: Path, rank: int) -> Path:
    """Return the file that a process's events go to."""
    return folder / f"rank-{rank}.jsonl"


class Recorder(TrainerCallback):
    """Writes down what one process of a run does.

    Events, each with the number of optimizer steps done before it:

    - ``start``: what is trained (name and shape, in order), digests of the first values, the groups of the optimizer.
    - ``batch``: of each forward pass, digests of every row's ids and labels and of what all images became (every one
      of the architecture's ``image_keys``), the state of the random generator, and the loss.
    - ``step``: at each optimizer step, every group's settings, the gradients after clipping, and the weights it led to.
    - ``log``: the loss, gradient norm and evaluation loss that the framework reports.

    Args:
        folder: Where the file goes, one a process.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Path | None = None
        self._model: VlmLoraPeftModel | None = None
        self._step = 0
        self._pending: dict[str, Any] = {}
        self._hooks: list[Any] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write down what the run starts from, and watch the model's forward pass."""
        model = find_prepared(kwargs["model"])
        if model is None:
            raise TrainingError("A run can be recorded only of a model that vlm_lora_plugin.prepare returned")
        self._model, self._step = model, state.global_step
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = record_file(self._folder, args.process_index)
        self._file.write_text("", "utf-8")
        tensors = model.named_trainables()
        self._write(
            "start",
            processes=args.world_size,
            dtype=str(model.vlm_lora.dtype),
            digest=model.vlm_lora.manifest.digest,
            trainables={name: list(tensor.shape) for name, tensor in tensors.items()},
            weights=_digests(tensors),
            last=state.max_steps,
        )
        self._hooks = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, with_kwargs=True),
        ]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the gradients and what the optimizer will do with them."""
        tensors = self._tensors()
        names = {id(tensor): name for name, tensor in tensors.items()}
        self._pending = {
            "groups": [_group(group, names) for group in kwargs["optimizer"].param_groups],
            "gradients": {name: tensor_digest(t.grad) for name, t in tensors.items() if t.grad is not None},
        }

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write down the weights after a step."""
        self._write("step", **self._pending, weights=_digests(self._tensors()))
        self._step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write down what the framework reports."""
        values = {key: float(value).hex() for key, value in (logs or {}).items() if key in LOGGED}
        if values and self._file is not None:
            self._write("log", **values)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the model alone."""
        self._write("end")
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before_forward(self, module: torch.nn.Module, inputs: Sequence[Any], named: Mapping[str, Any]) -> None:
        ids, labels, mask = (named.get(key) for key in ("input_ids", "labels", "attention_mask"))
        keys = () if self._model is None else self._model.vlm_lora.trainable.architecture.image_keys
        self._pending = {
            "mode": "train" if module.training else "eval",
            "ids": _row_digests(ids, mask),
            "labels": _row_digests(labels, mask),
            "pixels": text_digest(_image_digests(named, keys)),
            "random": tensor_digest(torch.get_rng_state()),
        }

    def _after_forward(
        self, module: torch.nn.Module, inputs: Sequence[Any], named: Mapping[str, Any], output: Any
    ) -> None:
        loss = getattr(output, "loss", None)
        self._write("batch", **self._pending, loss=None if loss is None else float(loss.detach()).hex())

    def _tensors(self) -> dict[str, torch.nn.Parameter]:
        return {} if self._model is None else self._model.named_trainables()

    def _write(self, event: str, **values: Any) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"event": event, "step": self._step, **values}) + "\n")


def _digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    return {name: tensor_digest(tensor) for name, tensor in tensors.items()}


def _group(group: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    settings = {key: group[key] for key in ("name", "lr", "weight_decay", "betas", "eps") if key in group}
    members = text_digest(names.get(id(tensor), "?") for tensor in group["params"])
    return {**{key: _exact(value) for key, value in settings.items()}, "parameters": members}


def _exact(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_exact(part) for part in value]
    return value.hex() if isinstance(value, float) else value


def _row_digests(rows: torch.Tensor | None, mask: torch.Tensor | None) -> list[str]:
    """Return a digest of each row without its padding."""
    if rows is None:
        return []
    real = torch.ones_like(rows, dtype=torch.bool) if mask is None else mask.bool()
    return [tensor_digest(row[keep]) for row, keep in zip(rows, real, strict=True)]


def _image_digests(batch: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Return a digest of each item of the first key, the pixels, and behind them those of the other keys by name."""
    digests = []
    for number, key in enumerate(keys):
        items = batch.get(key)
        name = f"{key}=" if number else ""  # so that records of models with pixels alone stay comparable
        digests += [] if items is None else [name + tensor_digest(item) for item in items]
    return digests


def recorder_of_environment() -> Recorder:
    """Return the recorder of a run that ``vlm-lora parity`` started.

    Raises:
        TrainingError: It did not.
    """
    folder = os.environ.get(RECORD_VARIABLE)
    if folder is None:
        raise TrainingError(
            f"A run is recorded in the folder that {RECORD_VARIABLE} names, and it is not set",
            fix="Run `vlm-lora parity`, or leave the recorder out of --callbacks.",
        )
    return Recorder(Path(folder))
