"""The client of ``forked_ranks.py``: gives it jobs, and reads what they left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from launching import variables
from warm import warm

from vlm_lora_plugin.checkpoint.completion import checkpoints, why_incomplete

SCRIPT = Path(__file__).with_name("forked_ranks.py")


PATIENCE = 60.0
"""Seconds that ranks have to end by themselves after the first one failed with an error of its own."""


class ForkedRanks:
    """Runs jobs of a framework on ranks that are forked from a process which has the libraries imported."""

    def __init__(self, framework: str) -> None:
        self.framework = framework

    def run(self, *, processes: int = 2, **job: Any) -> list[dict[str, Any]]:
        """Run a job; see the script for its keys, and for what each rank leaves.

        Each rank's answer has ``status`` and ``seconds`` too, and ``printed``, what all of them printed last.
        """
        left = Path(f"{job['output']}.ranks")
        shutil.rmtree(left, ignore_errors=True)
        left.mkdir(parents=True)
        (left / "job.json").write_text(json.dumps(job, default=str))
        ended = warm(self.framework).fork(
            [SCRIPT, self.framework, left / "job.json"],
            env=variables(),
            ranks=processes,
            launched=True,
            patience=PATIENCE,
        )
        answers = []
        for rank, (status, seconds) in enumerate(zip(ended.statuses, ended.seconds, strict=True)):
            file = left / f"result-{rank}.json"
            said = json.loads(file.read_text()) if file.is_file() else {}
            answers.append({"status": status, "seconds": seconds, **said, "printed": ended.stderr[-6000:]})
        return answers


def statuses(ranks: list[dict[str, Any]]) -> list[int]:
    """The exit code of each rank, or minus the signal that ended it."""
    return [rank["status"] for rank in ranks]


def succeeded(ranks: list[dict[str, Any]]) -> None:
    """Check that every rank ended well."""
    assert statuses(ranks) == [0] * len(ranks), "\n".join(rank["printed"] for rank in ranks)


def newest_complete(folder: Path) -> Path | None:
    """The checkpoint that a job would be resumed from."""
    return next((path for path in checkpoints(folder) if why_incomplete(path) is None), None)


def history(checkpoint: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm of each step up to a checkpoint."""
    lines = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines if "loss" in line}
