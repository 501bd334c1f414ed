"""The log of a run: one JSON object a line, written as it happens."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_TRAIN_KEYS = (
    "loss",
    "grad_norm",
    "tokens_per_second",
    "supervised_tokens_per_second",
    "images_per_second",
    "data_wait_share",
    "device_memory_gib",
    "device_memory_peak_gib",
    "host_memory_gib",
    "host_memory_peak_gib",
)
# What the Trainer adds to an evaluation of its own accord.
_TIMINGS = ("_runtime", "_per_second", "_preparation_time", "_compilation_time")


class JsonlLog(TrainerCallback):
    """Writes ``step``, ``epoch``, ``seconds`` since the start, and what the trainer logged at that step.

    A training line has ``loss`` (mean over the steps since the last line, in nats per supervised token),
    ``grad_norm``, ``learning_rate`` (by group, as used in that step) and, of a Trainer with a
    :class:`~vlm_lora_plugin.frameworks.trainer.resource_monitor.ResourceMonitor`, its numbers; an evaluation line has
    ``eval_loss``, another one ``eval_<name>`` of a metric. A value that is not finite is written as null.

    Args:
        file: Where to write. Created with the first line; its folder must exist by then.
        elapsed: Seconds that the same job took before it was interrupted.
    """

    def __init__(self, file: Path, *, elapsed: float = 0.0) -> None:
        self._file = file
        self._elapsed = elapsed
        self._rates: dict[str, float] = {}
        self._start = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Note the rates now: when the trainer logs, the scheduler has moved on."""
        groups = optimizer.param_groups if optimizer is not None else []
        self._rates = {str(group.get("name", index)): float(group["lr"]) for index, group in enumerate(groups)}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line for a training or evaluation log; the trainer's closing summary is left out."""
        line: dict[str, Any] = {"step": state.global_step, "epoch": state.epoch}
        values = {key: _finite(value) for key, value in (logs or {}).items() if key in _TRAIN_KEYS or is_result(key)}
        if not values or not state.is_world_process_zero:
            return
        line.update(values)
        if "loss" in values:
            line["learning_rate"] = self._rates
        line["seconds"] = round(self._elapsed + time.monotonic() - self._start, 3)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")


def is_result(key: str) -> bool:
    """Return whether a logged value is a result of an evaluation: its loss, or a metric."""
    return key.startswith("eval_") and not key.endswith(_TIMINGS)


def read_log(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a log."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
