"""The client of ``forked_ranks.py``: gives it jobs, and reads what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from launching import EXTENSIONS, ROOT

from vlm_lora_plugin.checkpoint.completion import checkpoints, why_incomplete

SCRIPT = Path(__file__).with_name("forked_ranks.py")


class ForkedRanks:
    """Runs jobs of a framework on processes that are forked from one which has everything imported."""

    def __init__(self, framework: str) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters"), *sys.path]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "DS_ACCELERATOR": "cpu",
            "TORCH_EXTENSIONS_DIR": str(EXTENSIONS),
        }
        self.framework = framework
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), framework],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, **job: Any) -> list[dict[str, Any]]:
        """Run a job; see the script for its keys, and for those of each rank's answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job, default=str) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks the ranks has ended"
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


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
