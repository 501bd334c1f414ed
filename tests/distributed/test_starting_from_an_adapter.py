"""``vlm-lora train --from-adapter`` on two processes, plain and under ZeRO-3, goes on from what one process trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launching import largest_difference, trained, variables

from vlm_lora_plugin.checkpoint.manifest_file import read_manifest
from vlm_lora_plugin.prepared.lineage import adapter_digest

pytestmark = pytest.mark.slow

COMMAND = Path(sys.executable).with_name("vlm-lora")
SETTINGS = {
    "lora.lora_dropout": 0.0,
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_ratio": 0.0,
    "optimizer.adam_epsilon": 1e-5,  # AdamW turns the rounding of a gradient near zero into a share of a whole step
    "training.gradient_accumulation_steps": 1,
    "training.save_steps": 2,
    "training.dataloader_num_workers": 0,
}
TOGETHER = {
    "plain": ("--gpus", 2, "--set", "training.per_device_train_batch_size=1"),
    "zero-3": ("--set", "hardware=2x24", "--set", "training.per_device_train_batch_size=1"),
}
"""How two processes train two rows in each step; 24 GiB shard the weights."""
ALONE = ("--set", "training.per_device_train_batch_size=2")


def train(model, rows, output, *words):
    """Run the command in processes of its own, on the CPU."""
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    line = [COMMAND, "train", model, "--data", rows, "-o", output, "--dtype", "fp32", *settings, *words]
    environment = {**os.environ, **variables(), "COLUMNS": "160"}
    return subprocess.run(list(map(str, line)), capture_output=True, text=True, env=environment, timeout=600)


def succeeded(done):
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def losses(job):
    return [line["loss"] for line in map(json.loads, (job / "log.jsonl").read_text().splitlines()) if "loss" in line]


@pytest.fixture(scope="module")
def rows(write_rows):
    return write_rows("itiitIitit")


@pytest.fixture(scope="module")
def parent(tiny_monkey, rows, tmp_path_factory):
    """A finished job of two steps, trained by one process."""
    job = tmp_path_factory.mktemp("parent") / "job"
    succeeded(train(tiny_monkey, rows, job, *ALONE, "--preset", "lora+llm-lora", "--max-steps", 2))
    return job


@pytest.fixture(scope="module")
def alone(parent, tiny_monkey, rows, tmp_path_factory):
    """The adapter's child, trained by one process."""
    job = tmp_path_factory.mktemp("alone") / "job"
    succeeded(train(tiny_monkey, rows, job, *ALONE, "--from-adapter", parent, "--max-steps", 2))
    return job


@pytest.mark.parametrize("framework", ["trainer", "swift"])
@pytest.mark.parametrize("how", TOGETHER)
def test_two_processes_go_on_as_one_does(parent, alone, tiny_monkey, rows, tmp_path, how, framework):
    job = tmp_path / "job"
    words = ("--from-adapter", parent, "--max-steps", 2, "--framework", framework)
    done = succeeded(train(tiny_monkey, rows, job, *TOGETHER[how], *words))
    assert f"starting from {parent / 'adapter'}, trained for 2 steps, with a fresh optimizer" in done.stdout
    manifest = read_manifest(job / "adapter")
    assert manifest.steps == 2
    assert [(entry.digest, entry.steps) for entry in manifest.lineage] == [(adapter_digest(parent / "adapter"), 2)]
    assert losses(job) == pytest.approx(losses(alone), abs=1e-4)
    assert trained(job / "adapter").keys() == trained(parent / "adapter").keys()
    assert largest_difference(job / "adapter", alone / "adapter") < 1e-4
    assert largest_difference(job / "adapter", parent / "adapter") > 1e-4


@pytest.mark.parametrize(("how", "framework"), [("plain", "trainer"), ("zero-3", "trainer"), ("zero-3", "swift")])
def test_a_child_that_is_resumed_ends_as_the_uninterrupted_one(parent, tiny_monkey, rows, tmp_path, how, framework):
    """DeepSpeed, not ``load_adapter``, loads the checkpoint under ZeRO-3."""
    job, within = tmp_path / "job", ("--framework", framework)
    succeeded(train(tiny_monkey, rows, job, *TOGETHER[how], *within, "--from-adapter", parent, "--max-steps", 4))
    whole, manifest = trained(job / "adapter"), read_manifest(job / "adapter")
    for held in ("adapter", "checkpoints/checkpoint-4"):
        (job / held).rename(tmp_path / Path(held).name)
    gpus = ("--gpus", 2) if how == "plain" else ()
    line = [COMMAND, "train", "--resume", "-o", job, "--dtype", "fp32", *gpus, *within]
    environment = {**os.environ, **variables(), "COLUMNS": "160"}
    succeeded(subprocess.run(list(map(str, line)), capture_output=True, text=True, env=environment, timeout=600))
    assert all(value.equal(whole[name]) for name, value in trained(job / "adapter").items())
    assert read_manifest(job / "adapter") == manifest


def test_the_state_of_the_optimizer_is_kept_by_every_process(parent, tiny_monkey, rows, tmp_path):
    words = ("--from-adapter", parent, "--keep-optimizer", "--max-steps", 2)
    succeeded(train(tiny_monkey, rows, tmp_path / "alone", *ALONE, *words))
    succeeded(train(tiny_monkey, rows, tmp_path / "together", *TOGETHER["plain"], *words))
    assert largest_difference(tmp_path / "together/adapter", tmp_path / "alone/adapter") < 1e-4


def test_kept_moments_are_refused_where_the_optimizer_is_sharded(parent, tiny_monkey, rows, tmp_path):
    words = (*TOGETHER["zero-3"], "--from-adapter", parent, "--keep-optimizer", "--max-steps", 2)
    done = train(tiny_monkey, rows, tmp_path / "job", *words)
    assert done.returncode == 2
    assert "hardware.zero_stage" in done.stderr
    assert not (tmp_path / "job").exists()
