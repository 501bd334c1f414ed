"""The client of ``warm_server.py``: ``run`` takes what ``subprocess.run`` takes, for a line that starts Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import IO, Any

SERVER = Path(__file__).with_name("warm_server.py")
PROGRAM = Path(sys.executable).with_name("vlm-lora")
ENTRY = "from vlm_lora_plugin.cli import main; main()"
FOREVER = 600.0


@dataclass
class Ended:
    """What became of a program: of each rank its exit code, or minus the signal, and its seconds."""

    statuses: list[int]
    seconds: list[float]
    stdout: str
    stderr: str


class Warm:
    """Programs that start in a fork of one process, which has the libraries of a framework imported."""

    def __init__(self, kind: str) -> None:
        self._kind, self._process = kind, None

    def fork(
        self,
        line: Sequence[Any],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        ranks: int = 1,
        launched: bool = False,
        patience: float = 0.0,
        seconds: float = FOREVER,
    ) -> Ended:
        """Run what follows ``python`` on a command line, on one process or as several ranks."""
        process = self._started()
        with TemporaryDirectory() as folder:
            out, err = Path(folder, "stdout"), Path(folder, "stderr")
            request = {
                "line": list(map(str, line)),
                "environment": dict(os.environ if env is None else env),
                "cwd": str(cwd or Path.cwd()),
                "stdout": str(out),
                "stderr": str(err),
                "ranks": ranks,
                "launched": launched,
                "patience": patience,
                "seconds": seconds,
            }
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, "the process that forks has ended"
            printed = (file.read_text("utf-8", errors="replace") if file.exists() else "" for file in (out, err))
            return Ended(*json.loads(answer).values(), *printed)

    def run(
        self,
        line: Sequence[Any],
        *,
        stdout: IO[bytes] | None = None,
        stderr: int | None = None,
        check: bool = False,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Stand in for ``subprocess.run``: a line of this Python, of ``vlm-lora``, or of torchrun on one node."""
        words = list(map(str, line))
        if words[0] == str(PROGRAM):
            words = [sys.executable, "-c", ENTRY, *words[1:]]
        assert words[0] == sys.executable, words
        words, how = words[1:], {}
        if words[:2] == ["-m", "torch.distributed.run"]:
            words, how = _launched(words[2:])
        for unused in ("capture_output", "text"):
            options.pop(unused, None)
        ended = self.fork(words, **options, **how)
        if stdout is not None:
            stdout.write((ended.stdout + ended.stderr).encode())
            assert stderr == subprocess.STDOUT
        status = next((status for status in ended.statuses if status), 0)
        done = subprocess.CompletedProcess(words, status, ended.stdout, ended.stderr)
        if check:
            done.check_returncode()
        return done

    @property
    def subprocess(self) -> SimpleNamespace:
        """Stand in for the module, in one of ours that calls ``subprocess.run``."""
        return SimpleNamespace(run=self.run, STDOUT=subprocess.STDOUT)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait(timeout=60)
            self._process.stdout.close()

    def _started(self) -> subprocess.Popen:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(SERVER), self._kind],
                env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self._process


_RUNNING: dict[str, Warm] = {}


def warm(kind: str) -> Warm:
    """Return the one of this process that runs programs with ``trainer``, or with ``swift``."""
    return _RUNNING.setdefault(kind, Warm(kind))


def pytest_sessionfinish() -> None:
    """End what runs, and wait for it, so that its processor time counts as that of the tests."""
    while _RUNNING:
        _RUNNING.popitem()[1].close()


def _launched(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """What a line of torchrun runs, and on how many ranks."""
    ranks, rest = 1, list(words)
    while rest and rest[0].startswith("--"):
        name = rest.pop(0)
        if name in ("--nproc-per-node", "--nproc_per_node"):
            ranks = int(rest.pop(0))
        elif name in ("--master_port", "--master-port"):
            rest.pop(0)
        else:
            assert name == "--standalone", name
    return rest, {"ranks": ranks, "launched": True}
