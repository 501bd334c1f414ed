"""The beats of ranks: where a thread is said to be, and what is relied on in torch for them."""

from __future__ import annotations

import threading

import pytest

from vlm_lora_plugin.parallel import heartbeat
from vlm_lora_plugin.parallel.waiting import Waiting


def test_alone_nothing_beats():
    heartbeat.start_heartbeat(7)
    assert heartbeat._running == []


def test_a_thread_is_where_its_own_code_waits_not_in_the_standard_library():
    found = []
    event = threading.Event()

    def waits():
        event.wait(10)

    thread = threading.Thread(target=waits)
    thread.start()
    while "wait" not in str(found):
        frame = heartbeat.sys._current_frames()[thread.ident]
        found.append(heartbeat._where(frame))
    event.set()
    thread.join()
    assert found[-1][0].startswith("waits (parallel/test_heartbeat.py:")
    assert not found[-1][1]


@pytest.fixture
def said(monkeypatch):
    found = []
    monkeypatch.setattr(heartbeat, "_say", found.append)
    return found


def test_the_lowest_living_rank_speaks_less_and_less_often_and_says_when_it_is_over(said, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    watcher, other = heartbeat.Heartbeat(0, 3), heartbeat.Heartbeat(2, 3)
    for second in range(400):
        now[0] = float(second)
        for each in (watcher, other):
            each._tell(Waiting((1,), "Rank 1 is missing."))
    assert said == ["Rank 1 is missing."] * 4  # after 0, 40, 120 and 280 seconds
    watcher._tell(None)
    assert said[4:] == ["Rank 0: the ranks work together again."]


@pytest.mark.parametrize("text", ["Timed out waiting 6000ms for recv", "Connection closed by peer [::1]:5", "aborted"])
def test_an_error_of_communication_names_who_is_missing(text, monkeypatch):
    class Running:
        def waiting(self):
            return Waiting((1,), "Rank 1 is missing.")

    monkeypatch.setattr(heartbeat, "_running", [Running()])
    assert heartbeat.missed(RuntimeError(text)).why == "Rank 1 is missing."
    assert heartbeat.missed(RuntimeError("a tensor of another shape")) is None
    monkeypatch.setattr(heartbeat, "_running", [])
    assert heartbeat.missed(RuntimeError(text)) is None


def test_a_listener_that_fails_is_passed_over(monkeypatch, capsys):
    heard = []

    def fails(text):
        raise OSError("full")

    monkeypatch.setattr(heartbeat, "_listeners", [fails, heard.append])
    heartbeat._say("Rank 1 is missing.")
    assert heard == ["Rank 1 is missing."]
    assert capsys.readouterr().err == "vlm-lora: Rank 1 is missing.\n"
