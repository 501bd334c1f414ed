"""``vlm-lora train --framework swift`` leaves what ``--framework trainer`` leaves."""

import json
import os
import shutil

import pytest
from warm import PROGRAM, warm

from vlm_lora_plugin.parallel.launcher import CPU, CPU_VARIABLE

pytestmark = pytest.mark.xdist_group("parity")

SETTINGS = [
    *("--preset", "lora+llm-lora", "--set", "optimizer.learning_rate=5e-3", "--set", "training.eval_steps=2"),
    *("--set", "training.gradient_accumulation_steps=2", "--set", "training.save_steps=2", "--max-steps", "4"),
    *("--set", "evaluation.max_new_tokens=3", "--dtype", "fp32"),
]
# What depends on the clock or the machine.
MEASURED = ("seconds", "_per_second", "_gib", "data_wait_share")


COUNTING = """
import os
from vlm_lora_plugin.planning import resolve
from vlm_lora_plugin.plugins.manager import AdapterManager

def counting(what, original):
    def count(*arguments):
        with open(os.environ["COUNTED"], "a") as file:
            print(os.getpid(), what, getattr(arguments[-1], "device", ""), file=file)
        return original(*arguments)
    return count

resolve.Stacked.of = staticmethod(counting("resolve", resolve.Stacked.of))
AdapterManager.load_model = counting("load", AdapterManager.load_model)
"""
"""Python's ``sitecustomize`` in the process of Swift; the fork that starts it has none."""


def log(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith(MEASURED)} for line in lines]


def adapter(folder):
    return {file.name: file.read_bytes() for file in (folder / "adapter").iterdir()}


@pytest.fixture(scope="module")
def train(model, rows, tmp_path_factory):
    """Run the command in a fork that has the libraries imported; the Swift that it starts is a process of its own."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "sitecustomize.py").write_text(COUNTING)
    # A user of the CPU has DeepSpeed's switch set for good, and trains on one process all the same.
    environment = {**os.environ, "PYTHONPATH": str(folder), "COUNTED": str(folder / "counted.txt"), CPU_VARIABLE: CPU}

    def run(framework):
        arguments = ("--data", rows[0], "--val-data", rows[1], "-o", folder / framework, *SETTINGS)
        line = [PROGRAM, "train", model, *arguments, "--framework", framework]
        done = warm("trainer").run(line, env=environment)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        (folder / f"{framework}.txt").write_text(done.stdout)
        return folder

    return run


@pytest.fixture(scope="module")
def in_swift(train):
    return train("swift") / "swift"


@pytest.fixture(scope="module")
def trained(train, in_swift):
    return train("trainer")


def test_progress_and_summary_are_printed(in_swift):
    text = in_swift.with_suffix(".txt").read_text()
    assert "step 4/4" in text
    assert "limited by" in text
    assert "4 steps, loss" in text


def test_swifts_process_resolves_once_and_builds_the_model_once_without_weights(in_swift):
    counted = [line.split() for line in (in_swift.parent / "counted.txt").read_text().splitlines()]
    assert len({process for process, *_ in counted}) == 1
    assert sorted(" ".join(what) for _, *what in counted) == ["load cpu", "load meta", "resolve"]


def test_the_adapter_has_the_same_bytes(trained):
    assert adapter(trained / "swift") == adapter(trained / "trainer")


def test_the_recipe_is_the_same(trained):
    assert (trained / "swift/recipe.yaml").read_bytes() == (trained / "trainer/recipe.yaml").read_bytes()


def test_the_log_has_the_same_numbers(trained):
    assert log(trained / "swift") == log(trained / "trainer")
    assert any("eval_exact_match" in line for line in log(trained / "swift"))


def test_the_folder_holds_the_same_and_what_swift_printed(trained):
    ours, theirs = ({path.name for path in (trained / name).iterdir()} for name in ("trainer", "swift"))
    assert theirs - ours == {"swift.log"}
    assert ours <= theirs
    names = {path.name for path in (trained / "trainer/checkpoints").iterdir()}
    assert names <= {path.name for path in (trained / "swift/checkpoints").iterdir()}


@pytest.mark.slow
def test_it_is_resumed_by_either(trained, model, rows, program, tmp_path):
    for framework, other in (("trainer", "swift"), ("swift", "trainer")):
        shutil.copytree(trained / framework, tmp_path / framework)
        shutil.rmtree(tmp_path / framework / "checkpoints/checkpoint-4")
        shutil.rmtree(tmp_path / framework / "adapter")
        arguments = ("--data", rows[0], "--val-data", rows[1], "-o", tmp_path / framework, "--dtype", "fp32")
        done = program("train", model, *arguments, "--framework", other, "--resume")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert adapter(tmp_path / framework) == adapter(trained / "trainer")
        assert log(tmp_path / framework) == log(trained / "trainer")


@pytest.mark.slow
def test_a_run_that_fails_before_its_first_step_changes_nothing(model, rows, program, tmp_path):
    output = tmp_path / "out"
    arguments = ("--data", rows[0], "--val-data", rows[1], "-o", output, *SETTINGS)
    done = program("train", model, *arguments, "--framework", "swift", CUDA_VISIBLE_DEVICES="", NPROC_PER_NODE="none")
    assert done.returncode == 3
    assert "swift sft failed with exit code" in done.stderr
    assert not output.exists()
