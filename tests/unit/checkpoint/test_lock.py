"""One run in a folder at a time, whoever is dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace

import pytest

import vlm_lora_plugin.checkpoint.lock as locking
from vlm_lora_plugin.checkpoint.lock import LOCK, FolderLock, check_still_held, lock_around, refuse_held
from vlm_lora_plugin.errors import OutputError
from vlm_lora_plugin.processes import ProcessMark, started_at

ELSEWHERE = ProcessMark("another.host", "boot", "space", 7, "1", "vlm-lora train")


def lock(folder, **options):
    return FolderLock(folder / LOCK, folder, **options)


def put(folder, process, age=0.0, token="t"):
    """A lock of another run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    path.write_text(json.dumps({"process": asdict(process), "token": token}))
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))


@pytest.fixture
def other():
    """A process of this machine that lives."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.communicate()


def mark(pid):
    return replace(ProcessMark.of_this(), pid=pid, started=started_at(pid) or "gone")


def test_it_is_made_and_removed_with_the_folders_it_needed(tmp_path):
    folder = tmp_path / "a" / "b"
    with lock(folder):
        assert (folder / LOCK).is_file()
        assert lock_around(folder / "checkpoints") is not None
        assert [path.name for path in folder.iterdir()] == [LOCK]
    assert not (tmp_path / "a").exists()
    assert lock_around(folder) is None


def test_a_folder_with_something_in_it_stays(tmp_path):
    folder = tmp_path / "a"
    with lock(folder):
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_a_living_process_of_this_machine_is_named_however_old_its_lock(tmp_path, other):
    put(tmp_path, mark(other.pid), age=1000)
    for refused in (lambda: refuse_held(tmp_path), lambda: lock(tmp_path).__enter__()):
        with pytest.raises(OutputError, match=f"(?s)another run: process {other.pid} on .*--take-over") as caught:
            refused()
        assert "1000 s ago" in caught.value.what
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_dead_process_of_this_machine_does_not_hold_however_young_its_lock(tmp_path, other):
    put(tmp_path, replace(mark(other.pid), started="1"))  # its number belongs to another process by now
    refuse_held(tmp_path)
    with lock(tmp_path) as held:
        check_still_held(tmp_path)
        assert lock_around(tmp_path) is held


@pytest.mark.parametrize("changed", [{"host": "other"}, {"boot": "other"}, {"space": "pid:[1]"}])
def test_of_what_cannot_be_seen_from_here_the_age_decides(tmp_path, changed):
    process = replace(mark(os.getpid()), **changed)
    put(tmp_path, process, age=119)
    with pytest.raises(OutputError, match="in use"):
        lock(tmp_path).__enter__()
    put(tmp_path, process, age=130)
    with lock(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": {}}'])
def test_a_lock_that_says_nothing_is_young_or_dead(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(OutputError, match="does not say who it is"):
        lock(tmp_path).__enter__()
    os.utime(tmp_path / LOCK, (0, 0))
    with lock(tmp_path):
        pass


def test_a_guard_of_a_process_that_was_killed_does_not_stay(tmp_path, other):
    dead = replace(mark(other.pid), started="1")
    put(tmp_path, dead)
    (tmp_path / LOCK).rename(tmp_path / (LOCK + ".taking"))
    put(tmp_path, dead)
    with lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_it_can_be_taken_over_and_the_run_that_had_it_stops(tmp_path):
    mine = lock(tmp_path).__enter__()
    theirs = lock(tmp_path, take_over=True).__enter__()
    with pytest.raises(OutputError, match="taken over by another run: process"):
        mine.check()
    mine.__exit__(None, None, None)
    theirs.check()
    assert (tmp_path / LOCK).is_file()
    theirs.__exit__(None, None, None)
    assert not list(tmp_path.iterdir())


def test_a_lock_that_somebody_tidied_up_is_taken_again(tmp_path):
    with lock(tmp_path) as mine:
        (tmp_path / LOCK).unlink()
        mine.check()
        assert (tmp_path / LOCK).is_file()


def test_a_folder_that_is_gone_is_named(tmp_path):
    with lock(tmp_path / "a") as mine:
        (tmp_path / "a" / LOCK).unlink()
        (tmp_path / "a").rmdir()
        with pytest.raises(OutputError, match="was removed while this run wrote to it"):
            mine.check()


def test_it_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "RENEWED_EVERY", 0.01)
    with lock(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        for _ in range(500):
            if (tmp_path / LOCK).stat().st_mtime > 1:
                break
            threading.Event().wait(0.01)
        assert (tmp_path / LOCK).stat().st_mtime > 1


def test_it_works_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with lock(tmp_path), pytest.raises(OutputError, match="in use"):
        lock(tmp_path).__enter__()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_at_once_one_gets_it(tmp_path, dead):
    if dead:
        put(tmp_path, ELSEWHERE, age=1000)
    gate, got, refused = threading.Barrier(8), [], []

    def contend():
        gate.wait()
        try:
            got.append(lock(tmp_path).__enter__())
        except OutputError:
            refused.append(True)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
    got[0].__exit__(None, None, None)
    assert not list(tmp_path.iterdir())
