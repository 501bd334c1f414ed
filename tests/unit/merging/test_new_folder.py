"""A folder that appears whole or not at all, and of which nobody leaves the half."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from vlm_lora_plugin.errors import OutputError
from vlm_lora_plugin.merging.new_folder import check_room, new_folder
from vlm_lora_plugin.processes import ProcessMark

MAKER = """
import sys, time
from pathlib import Path
from vlm_lora_plugin.merging.new_folder import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "model.safetensors").write_bytes(bytes(1000))
    print("begun", flush=True)
    time.sleep(60)
"""


def gone(folder, seconds=20):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not list(folder.glob(".*partial*")):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def maker(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", MAKER, tmp_path / "new"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    yield process
    process.kill()
    process.communicate()


def test_it_appears_whole(tmp_path):
    with new_folder(tmp_path / "new") as folder:
        (folder / "file").touch()
        assert not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a" / "new"):
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM", "SIGHUP"])
def test_a_process_that_is_killed_leaves_nothing(tmp_path, maker, number):
    assert len(list(tmp_path.glob(".new.partial-*"))) == 1
    maker.send_signal(getattr(signal, number))
    maker.wait()
    assert gone(tmp_path)
    with new_folder(tmp_path / "new"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_two_at_once_are_refused(tmp_path, maker):
    with pytest.raises(OutputError, match=f"in use by another run: process {maker.pid}"), new_folder(tmp_path / "new"):
        pass
    assert len(list(tmp_path.glob(".new.partial-*"))) == 1


@pytest.mark.parametrize("name", ["new", "other"])
def test_what_a_dead_one_left_is_removed_by_the_next_and_what_a_living_one_makes_is_not(tmp_path, maker, name):
    left = tmp_path / f".{name}-2.partial-0"
    left.mkdir()
    (left / "model.safetensors").touch()
    dead = ProcessMark("elsewhere", "", "", 1, "1", "vlm-lora merge")
    lock = tmp_path / f".{name}-2.vlm-lora.lock"
    lock.write_text(json.dumps({"process": asdict(dead), "token": "t"}))
    os.utime(lock, (0, 0))
    with new_folder(tmp_path / "third"):
        assert not left.exists()
        assert not lock.exists()
        assert len(list(tmp_path.glob(".new.partial-*"))) == 1


@pytest.mark.parametrize("name", ["x" * 256, "/".join(["y" * 200] * 25)])
def test_a_name_that_is_too_long_is_said_at_once(tmp_path, name):
    with pytest.raises(OutputError, match="name of the output folder is too long"), new_folder(tmp_path / name):
        pass
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_said_at_once(tmp_path):
    with pytest.raises(OutputError, match=r"it needs 1073741824\.0 GiB, .* are free"):
        check_room(tmp_path / "new", 2**60)
