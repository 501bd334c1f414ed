"""A run that is killed while it saves goes on from its newest complete checkpoint, to the same last bit."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from warm import warm

SCRIPT = Path(__file__).with_name("kills.py")
SEED = int(os.environ.get("VLM_LORA_TEST_KILL_SEED", "0"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are sent to forked processes, which Windows lacks")
@pytest.mark.parametrize("kills", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_a_killed_run_ends_like_the_uninterrupted_one_bit_for_bit(tmp_path, kills):
    path = os.pathsep.join([str(SCRIPT.parents[1]), str(SCRIPT.parents[2]), *sys.path])
    done = warm("trainer").run(
        [sys.executable, SCRIPT, tmp_path, kills, SEED],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report["kills"]) == kills
    assert not report["wrong"], done.stderr[-3000:]
    assert report["incomplete"], "no kill hit a save"
    assert report["runs"]
    assert all(run["equal"] for run in report["runs"]), report["runs"]
