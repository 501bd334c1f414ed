"""Starts jobs of ``job.py`` on processes of this machine's CPU, and reads what they left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from warm import warm

from vlm_lora_plugin.checkpoint.files import ADAPTER_WEIGHTS, BASE_WEIGHTS

SCRIPT = Path(__file__).with_name("job.py")
ROOT = SCRIPT.parents[2]
EXTENSIONS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vlm_lora_plugin" / "torch_extensions"
"""Where what DeepSpeed compiles is kept from one run of the tests to the next."""
PATIENCE = 5.0
"""Seconds that the other ranks have to end by themselves when one has failed."""


def zero(stage: int, **settings: Any) -> dict[str, Any]:
    """DeepSpeed's settings for a stage, with buckets that a tiny model fills more than once."""
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": 20000,
            "allgather_bucket_size": 20000,
            "stage3_prefetch_bucket_size": 20000,
            "stage3_param_persistence_threshold": 100,
            **settings,
        },
    }


@dataclass
class Launched:
    """What became of some jobs.

    Attributes:
        status: Exit code of the launcher.
        printed: The end of what the processes wrote to standard error, each line with its rank.
    """

    folder: Path
    status: int
    printed: str

    def result(self, name: str, rank: int = 0) -> dict[str, Any]:
        """What a rank left of a job."""
        file = self.folder / name / f"result-{rank}.json"
        assert file.is_file(), self.printed
        return json.loads(file.read_text())

    def losses(self, name: str, rank: int = 0) -> dict[int, float]:
        """The loss of each step."""
        result = self.result(name, rank)
        assert "losses" in result, result
        return {int(step): loss for step, (loss, _) in result["losses"].items()}


def launch(
    folder: Path,
    model: Path,
    jobs: dict[str, dict[str, Any]],
    *,
    processes: int = 2,
    job_seconds: float = 300,
    forked: bool = True,
) -> Launched:
    """Run jobs, by name, one after the other in the same processes; each has its output in ``folder / name``.

    The processes are forks of one with everything imported, unless ``forked`` is false: then torchrun starts them.
    Processes whose job takes ``job_seconds`` print where they stand, and all of them end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, job in jobs.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps({"model": str(model), "output": str(folder / name), **job}))
        files.append(str(file))
    limit = job_seconds * len(jobs) + 60  # for what hangs before a job begins, or in the launcher
    start = fork if forked else torchrun
    return start(folder, SCRIPT, files, processes=processes, seconds=limit, JOB_SECONDS=str(job_seconds))


def fork(
    folder: Path, script: Path, arguments: list[str], *, processes: int = 2, seconds: float = 600, **environment: str
) -> Launched:
    """Run a script as torchrun would, in forks of a process that has the libraries imported."""
    folder.mkdir(parents=True, exist_ok=True)
    ended = warm("trainer").fork(
        [script, *arguments],
        env=variables(**environment),
        ranks=processes,
        launched=True,
        patience=PATIENCE,
        seconds=seconds,
    )
    status = next((status for status in ended.statuses if status), 0)
    return Launched(folder, status, ended.stderr[-8000:])


def torchrun(
    folder: Path, script: Path, arguments: list[str], *, processes: int = 2, seconds: float = 600, **environment: str
) -> Launched:
    """Run a script on several processes, with this environment; it works in a folder, which also gets its logs.

    After ``seconds`` the launcher is asked to end itself and its processes, and then made to.
    """
    ranks = ["--nproc-per-node", str(processes), "--standalone", "--tee", "2", "--log-dir", str(folder / "logs")]
    running = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *ranks, str(script), *arguments],
        env=variables(**environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, printed = running.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGTERM)
        try:
            _, printed = running.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            running.kill()
            _, printed = running.communicate()
    return Launched(folder, running.returncode, printed[-8000:])


def variables(**more: str) -> dict[str, str]:
    """The environment of a rank."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters"), *sys.path]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "TORCH_EXTENSIONS_DIR": str(EXTENSIONS),
        **more,
    }


def trained(folder: Path) -> dict[str, Any]:
    """Every tensor that a folder holds of what was trained."""
    files = (folder / name for name in (ADAPTER_WEIGHTS, BASE_WEIGHTS))
    return {name: tensor for file in files if file.is_file() for name, tensor in load_file(file).items()}


def largest_difference(left: Path, right: Path) -> float:
    """The largest difference of any element of two folders that must hold the same tensors."""
    one, other = trained(left), trained(right)
    assert one.keys() == other.keys()
    assert one
    return max(float((one[name] - other[name]).abs().max()) for name in one)
