"""What the world outside does to a job's output folder: never a success that is none, never half a file."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image

from vlm_lora_plugin.checkpoint.completion import checkpoints, why_incomplete
from vlm_lora_plugin.checkpoint.lock import LOCK
from vlm_lora_plugin.errors import OutputError
from vlm_lora_plugin.job import TrainJob
from vlm_lora_plugin.job import train as job_run

HOLDER = """
import sys
from pathlib import Path
from vlm_lora_plugin.checkpoint.lock import LOCK, FolderLock
folder = Path(sys.argv[1])
with FolderLock(folder / LOCK, folder):
    print("held", flush=True)
    sys.stdin.read()
"""


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    from vlm_lora_monkey.tiny import write_tiny_folder

    folder = tmp_path_factory.mktemp("inputs")
    Image.new("RGB", (20, 20), "red").save(folder / "red.png")
    turns = [{"role": "user", "content": "<image>Which colour?"}, {"role": "assistant", "content": "red"}]
    (folder / "train.jsonl").write_text(json.dumps({"messages": turns, "images": ["red.png"]}) + "\n")
    return write_tiny_folder(folder / "model"), folder / "train.jsonl"


@pytest.fixture
def job(inputs, tmp_path):
    training = {"max_steps": 3, "save_steps": 1, "gradient_accumulation_steps": 1, "dataloader_num_workers": 0}
    return TrainJob(model=inputs[0], data=inputs[1], output=tmp_path / "out", overrides={"training": training})


def at_step(monkeypatch, step, act):
    original = job_run.VlmLoraCallback.on_step_begin

    def acting(self, args, state, control, **kwargs):
        if state.global_step == step:
            act()
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(job_run.VlmLoraCallback, "on_step_begin", acting)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda out: (out / "recipe.yaml").unlink(), r"recipe\.yaml is missing"),
        slow(lambda out: (out / "data.json").write_text("{}"), r"data\.json is not what was written"),
        (lambda out: shutil.rmtree(out), "was removed while"),
        slow(lambda out: shutil.rmtree(out / "checkpoints"), None),
    ],
)
def test_a_folder_that_is_damaged_in_mid_run_is_no_success(job, monkeypatch, damage, words):
    at_step(monkeypatch, 2, lambda: damage(job.output))
    if words is None:  # the Trainer makes it again, and the last checkpoint is there
        assert job_run.run(job).steps == 3
        return
    with pytest.raises(OutputError, match=words):
        job_run.run(job)


def test_a_disk_that_takes_no_more_costs_only_the_checkpoint_that_it_does_not_take(job, monkeypatch):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step(monkeypatch, 2, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1])))
    try:
        with pytest.raises(OutputError, match=r"checkpoint-3 cannot be written to: a file is larger than"):
            job_run.run(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    monkeypatch.undo()
    assert [why_incomplete(path) for path in checkpoints(job.output / "checkpoints")] == [None, None]
    assert not [path for path in job.output.rglob("*") if ".tmp-" in path.name or ".partial" in path.name]
    assert job_run.run(replace(job, resume=True)).steps == 3


@pytest.mark.parametrize("prefix", ["", "[rank0]: "])
def test_what_swift_says_of_the_folder_is_said_as_of_ours(prefix):
    from vlm_lora_plugin.job.in_swift import _output_error

    error = OutputError("out cannot be written to: no space", why="Nothing was left.", fix="Free space.")
    text = f"Traceback ...\nvlm_lora_plugin.errors.OutputError: {error}\n\nW1128 torchrun says more"
    found = _output_error([prefix + line for line in text.splitlines()])
    assert (found.what, found.why, found.fix) == (error.what, error.why, error.fix)
    assert _output_error(["ValueError: something else"]) is None


def test_checkpoints_that_are_not_going_to_fit_are_refused_before_anything_is_loaded(job, monkeypatch):
    many = {"training": {**job.overrides["training"], "max_steps": 10**9, "save_total_limit": None}}
    monkeypatch.setattr(job_run, "_train", lambda *_: pytest.fail("it trains"))
    with pytest.raises(OutputError, match=r"1000000000 checkpoints of .* need .*, .* are free"):
        job_run.run(replace(job, overrides=many))
    assert not job.output.exists()


@pytest.fixture
def held(job):
    """The output folder, at which another process is at work."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, job.output], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.communicate("")


@pytest.mark.parametrize("options", [{"resume": True}, slow({}), slow({"overwrite": True})])
def test_a_folder_that_another_run_works_in_is_refused_and_stays_as_it_is(job, held, options):
    (job.output / "checkpoints" / "checkpoint-2").mkdir(parents=True)  # being written by the other run
    (job.output / "recipe.yaml").write_text("preset: lora\n")
    before = sorted(job.output.rglob("*"))
    with pytest.raises(OutputError, match=f"another run: process {held.pid}|already holds results"):
        job_run.run(replace(job, **options))
    assert sorted(job.output.rglob("*")) == before


@pytest.mark.slow
def test_a_folder_can_be_taken_over(job, held):
    assert job_run.run(replace(job, take_over=True)).steps == 3
    assert not (job.output / LOCK).exists()


def test_a_run_whose_folder_is_taken_over_stops_before_it_removes_anything(job, monkeypatch):
    at_step(monkeypatch, 2, lambda: (job.output / LOCK).write_text("somebody else's"))
    with pytest.raises(OutputError, match="taken over by another run"):
        job_run.run(job)
    assert [path.name for path in checkpoints(job.output / "checkpoints")] == ["checkpoint-2", "checkpoint-1"]
