"""What ``vlm-lora train --framework swift`` tells the Swift process, and what it hears from it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

JOB_VARIABLE = "VLM_LORA_JOB"
"""Environment variable with the path of the :class:`SwiftJob`'s file."""


@dataclass(frozen=True)
class SwiftJob:
    """One job of ``vlm-lora train`` in Swift.

    Attributes:
        output: The folder that results go to, as the user named it.
        recipe: The resolved recipe as YAML.
        sources: Who set each of its values, as JSON.
        data: The record of the data files, as it lies in the output folder.
        kept_log: The log up to the checkpoint that the job goes on from; None for a new job.
        elapsed: Seconds that the job had taken by then.
        metric: What is made of answers to the validation data, or None.
        notes: A file that the Swift process keeps the :class:`Notes` in.
        check_images: Whether every image is decoded before training, or its header read alone.
        parent: The folder of the adapter that a new job starts from, or None.
        moments: Fields of the :class:`~vlm_lora_plugin.frameworks.trainer.kept_optimizer.Moments` that a new job's
            optimizer starts with, or None for a fresh one.
        longer: Whether a finished job is trained longer, so that its recipe is written anew.
    """

    output: str
    recipe: str
    sources: str
    data: str
    kept_log: str | None
    elapsed: float
    metric: str | None
    notes: str
    check_images: bool = True
    parent: str | None = None
    moments: dict[str, Any] | None = None
    longer: bool = False

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        file.write_text(json.dumps(asdict(self)), "utf-8")

    @property
    def warnings(self) -> Path:
        """A file of lines that the Swift process's ranks want shown at once."""
        return Path(self.notes).with_name("warnings.txt")

    @classmethod
    def of_process(cls) -> SwiftJob | None:
        """Return the job that started this process, or None where the user started Swift."""
        file = os.environ.get(JOB_VARIABLE)
        return None if file is None else cls.read(Path(file))

    @classmethod
    def read(cls, file: Path) -> SwiftJob:
        """Read what :meth:`write` wrote."""
        return cls(**json.loads(file.read_text("utf-8")))


@dataclass(frozen=True)
class Notes:
    """What the Swift process says of a job while it runs.

    Attributes:
        begun: Whether the first step is done, and with it the output folder in use.
        step: Optimizer steps done.
        last: Number of the last step.
        resources: Fields of the :class:`~vlm_lora_plugin.diagnostics.resources.ResourceSummary`, once it is done.
        answers: Of the :class:`~vlm_lora_plugin.answering.samples.Sample`, once it is done.
    """

    begun: bool = False
    step: int = 0
    last: int = 0
    resources: dict[str, Any] | None = None
    answers: dict[str, Any] | None = None

    def write(self, file: Path) -> None:
        """Write it as JSON, whole or not at all."""
        temporary = file.with_suffix(".partial")
        temporary.write_text(json.dumps(asdict(self)), "utf-8")
        temporary.replace(file)

    @classmethod
    def read(cls, file: Path) -> Notes:
        """Read what :meth:`write` wrote; a process that has said nothing has not begun."""
        return cls(**json.loads(file.read_text("utf-8"))) if file.is_file() else cls()
