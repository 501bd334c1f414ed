"""A recorded run, read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vlm_lora_plugin.checkpoint.completion import checkpoints
from vlm_lora_plugin.checkpoint.files import ADAPTER_WEIGHTS, BASE_WEIGHTS
from vlm_lora_plugin.errors import TrainingError
from vlm_lora_plugin.frameworks.digests import joint_digest, tensor_digest
from vlm_lora_plugin.frameworks.recorder import record_file
from vlm_lora_plugin.parity.parity_job import Framework, Side

Event = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What one framework did.

    Attributes:
        framework: Which one.
        events: Of each process, in order.
        saved: Digest of each tensor in the files of the last checkpoint, by ``file: name``.
        checkpoint: That checkpoint, or None when none was written.
    """

    framework: Framework
    events: tuple[tuple[Event, ...], ...]
    saved: dict[str, str]
    checkpoint: Path | None

    @property
    def start(self) -> Event:
        """What the first process started from."""
        return self.events[0][0]

    def steps(self) -> dict[int, dict[str, float]]:
        """Return what was reported after each step: ``loss``, ``grad_norm``, ``eval_loss`` and ``learning_rate``."""
        found: dict[int, dict[str, float]] = {}
        for event in self.events[0]:
            if event["event"] == "log":
                values = {key: float.fromhex(text) for key, text in event.items() if key not in ("event", "step")}
                found.setdefault(event["step"], {}).update(values)
            elif event["event"] == "step":
                rates = {float.fromhex(group["lr"]) for group in event["groups"] if isinstance(group["lr"], str)}
                found.setdefault(event["step"] + 1, {})["learning_rate"] = max(rates, default=0.0)
        return dict(sorted(found.items()))

    def initial_digest(self) -> str:
        """Return one digest of all first values."""
        return joint_digest(self.start["weights"])

    def saved_digest(self) -> str:
        """Return one digest of all tensors in the saved adapter."""
        return joint_digest(self.saved)


def read_run(side: Side, processes: int) -> Run:
    """Read what a framework has left.

    Args:
        side: Where it was told to leave it.
        processes: Number of its processes.

    Raises:
        TrainingError: A process has recorded nothing: the recorder was not loaded, or training did not begin.
    """
    events = []
    for rank in range(processes):
        file = record_file(side.records, rank)
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
        if not lines:
            raise TrainingError(
                f"Process {rank} of {side.framework} has recorded nothing",
                fix=f"See what it printed: {side.printed}",
            )
        events.append(tuple(json.loads(line) for line in lines))
    newest = next(iter(checkpoints(side.checkpoints)), None)
    return Run(side.framework, tuple(events), {} if newest is None else saved_tensors(newest), newest)


def saved_tensors(folder: Path) -> dict[str, str]:
    """Return the digest of each tensor in an adapter's files, by ``file: name``."""
    found = {}
    for name in (ADAPTER_WEIGHTS, BASE_WEIGHTS):
        if (folder / name).is_file():
            with safe_open(folder / name, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  # no mapping: it has keys() and nothing else
                    found[f"{name}: {key}"] = tensor_digest(tensors.get_tensor(key))
    return found
