"""A launcher that is killed takes its children and theirs with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from vlm_lora_plugin.parallel.parent_death import LAUNCHERS, as_launcher, die_with_launchers
from vlm_lora_plugin.processes import started_at

CHILD = """
import os, subprocess, sys, time
from vlm_lora_plugin.parallel.parent_death import die_with_launchers
if sys.argv[1] == "between":  # as torchrun, and Swift's own launcher, stand between: they know nothing of us
    subprocess.run([sys.executable, "-c", os.environ["CHILD"], "end"])
die_with_launchers()
print(os.getpid(), flush=True)
time.sleep(60)
"""
LAUNCHER = """
import os, subprocess, sys
from vlm_lora_plugin.parallel.parent_death import as_launcher
if sys.argv[2] == "pipe":
    import vlm_lora_plugin.parallel.parent_death as there
    there._PIPES = True
with as_launcher():
    subprocess.run([sys.executable, "-c", os.environ["CHILD"], sys.argv[1]])
"""


def ended(pid, seconds=20):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if started_at(pid) is None:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal to kill by")
@pytest.mark.parametrize("way", ["system", "pipe"])
@pytest.mark.parametrize("who", ["end", "between"])
def test_a_killed_launcher_takes_children_and_grandchildren_with_it(who, way):
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, who, way],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "CHILD": CHILD},
    )
    pid = int(process.stdout.readline())
    assert started_at(pid)
    process.send_signal(signal.SIGKILL)
    assert ended(pid), "it trains on"
    process.stdout.close()
    process.wait()


def test_the_variable_says_who_launches_and_is_gone_afterwards(monkeypatch):
    monkeypatch.delenv(LAUNCHERS, raising=False)
    with as_launcher():
        outer = os.environ[LAUNCHERS]
        with as_launcher():
            assert os.environ[LAUNCHERS].startswith(f"{outer},{os.getpid()}/")
        assert os.environ[LAUNCHERS] == outer
    assert LAUNCHERS not in os.environ


def test_without_a_launcher_nothing_happens(monkeypatch):
    monkeypatch.delenv(LAUNCHERS, raising=False)
    before = threading.active_count()
    die_with_launchers()
    assert threading.active_count() == before
