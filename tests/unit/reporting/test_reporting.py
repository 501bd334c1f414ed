"""The log, the picture, the tree and the table, fed by hand."""

import io
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from transformers import TrainerControl, TrainerState

from vlm_lora_plugin.data.statistics import DataStatistics
from vlm_lora_plugin.reporting.data_table import data_table
from vlm_lora_plugin.reporting.log import JsonlLog, read_log
from vlm_lora_plugin.reporting.loss_picture import draw_loss
from vlm_lora_plugin.reporting.progress import ConsoleProgress
from vlm_lora_plugin.reporting.tree import count, size


def state(step, **more):
    return TrainerState(global_step=step, epoch=step / 10, max_steps=40, is_world_process_zero=True, **more)


def shown(printable, width=120):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(printable)
    return console.export_text()


def test_rates_are_logged_by_group_as_the_step_used_them(tmp_path):
    log = JsonlLog(tmp_path / "log.jsonl")
    group = {"params": [torch.nn.Parameter(torch.zeros(1))], "name": "vision.lora", "lr": 0.5}
    optimizer = torch.optim.SGD([group])
    log.on_pre_optimizer_step(None, state(0), TrainerControl(), optimizer=optimizer)
    optimizer.param_groups[0]["lr"] = 0.25
    log.on_log(None, state(1), TrainerControl(), logs={"loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.25})
    (line,) = read_log(tmp_path / "log.jsonl")
    assert line["learning_rate"] == {"vision.lora": 0.5}
    assert (line["step"], line["epoch"], line["loss"], line["grad_norm"]) == (1, 0.1, 2.0, 1.0)


def test_a_loss_that_is_not_finite_is_null_so_that_the_log_stays_json(tmp_path):
    log = JsonlLog(tmp_path / "log.jsonl")
    log.on_log(None, state(1), TrainerControl(), logs={"loss": float("nan"), "grad_norm": float("inf")})
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert line["loss"] is None
    assert line["grad_norm"] is None


def test_the_trainers_closing_summary_is_no_line(tmp_path):
    log = JsonlLog(tmp_path / "log.jsonl")
    log.on_log(None, state(1), TrainerControl(), logs={"train_runtime": 3.0, "train_loss": 2.0})
    assert not (tmp_path / "log.jsonl").exists()


def test_only_one_process_writes(tmp_path):
    log = JsonlLog(tmp_path / "log.jsonl")
    other = state(1)
    other.is_world_process_zero = False
    log.on_log(None, other, TrainerControl(), logs={"loss": 1.0})
    assert not (tmp_path / "log.jsonl").exists()


def test_the_picture_shows_both_losses(tmp_path):
    train = [{"step": step, "loss": 3.0 / step} for step in range(1, 6)]
    draw_loss(train, tmp_path / "one.png", title="t")
    draw_loss([*train, {"step": 5, "eval_loss": 1.0}], tmp_path / "two.png", title="t")
    one, two = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("one", "two"))
    assert one.shape == two.shape
    assert (one != two).any()


def test_a_picture_without_any_finite_loss_is_drawn_all_the_same(tmp_path):
    draw_loss([{"step": 1, "loss": None}], tmp_path / "loss.png", title="t")
    assert (tmp_path / "loss.png").is_file()


def printed_by(steps, *, every=1, seconds=1.0, total=40):
    """What is printed without a terminal when each step takes some seconds and every n-th is logged."""
    console = Console(width=100, record=True, file=io.StringIO(), force_terminal=False)
    now = [0.0]
    progress = ConsoleProgress(console, lambda: now[0])
    progress.on_train_begin(None, TrainerState(max_steps=total), TrainerControl())
    for step in steps:
        now[0] += seconds
        where = TrainerState(global_step=step, max_steps=total)
        progress.on_step_end(None, where, TrainerControl(should_log=step % every == 0))
        if step % every == 0:
            progress.on_log(None, where, TrainerControl(), logs={"loss": 1.0})
    progress.on_log(None, TrainerState(global_step=total, max_steps=total), TrainerControl(), logs={"eval_loss": 0.5})
    return console.export_text().splitlines()


def test_without_a_terminal_the_first_step_and_about_twenty_lines_are_printed():
    lines = printed_by(range(1, 41))
    assert len(lines) == 21
    assert lines[0] == "step 1/40  loss 1.0000"
    assert lines[-1] == "step 40/40  eval_loss 0.5000"


def test_the_lines_come_also_where_steps_are_logged_in_bundles():
    lines = printed_by(range(1, 41), every=3)
    assert lines[:2] == ["step 1/40", "step 3/40  loss 1.0000"]
    assert len(lines) == 15


@given(total=st.integers(1, 3000), every=st.integers(1, 500), first=st.integers(0, 100))
def test_the_first_line_comes_after_the_first_step_and_few_follow(total, every, first):
    lines = printed_by(range(first + 1, first + total + 1), every=every, seconds=0.01, total=first + total)
    assert lines[0].startswith(f"step {first + 1}/{first + total}")
    assert len(lines) <= 23


@given(seconds=st.floats(1, 1000), every=st.integers(1, 100))
def test_slow_steps_leave_a_run_silent_for_a_minute_and_then_never_longer_than_the_time_before(seconds, every):
    lines = printed_by(range(1, 1001), every=every, seconds=seconds, total=10_000)
    steps = [int(line.split()[1].partition("/")[0]) for line in lines[:-1]]
    assert steps[0] == 1
    times = [0, *(step * seconds for step in steps)]
    assert all(now - before <= before + 61 + 2 * seconds for before, now in pairwise(times))
    assert len(lines) < 60


def test_on_a_terminal_a_bar_is_drawn_and_taken_away():
    console = Console(width=100, record=True, file=io.StringIO(), force_terminal=True)
    progress = ConsoleProgress(console)
    progress.on_train_begin(None, state(0), TrainerControl())
    progress.on_log(None, state(1), TrainerControl(), logs={"loss": 1.0})
    progress.on_step_end(None, state(1), TrainerControl())
    progress.on_train_end(None, state(40), TrainerControl())
    assert "1/40 steps" in console.export_text()
    progress.close()


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (1_500, "1.50 k"), (127_170_000, "127.17 M"), (9_708_053_824, "9.71 B")]
)
def test_counts_keep_a_unit(number, text):
    assert count(number) == text


def test_memory_is_shown_in_a_unit_that_fits():
    assert size(18.084) == "18.08 GiB"
    assert size(1 / 1024) == "1.00 MiB"


def test_the_data_table_names_every_set():
    counts = {"rows": 1500, "images": 1500, "tokens": 75_000, "longest": 61, "supervised_tokens": 7_500, "truncated": 2}
    statistics = DataStatistics(**counts, longest_origin="some/where/data.jsonl:17")
    text = shown(data_table({"training": statistics, "validation": statistics}))
    assert "training" in text
    assert "validation" in text
    for value in ("1,500", "50", "61 (data.jsonl:17)", "7,500", "2"):
        assert value in text
