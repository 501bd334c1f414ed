"""Real runs of both frameworks on tiny models: the Trainer in its process, ``swift sft`` in its own."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from warm import warm

import vlm_lora_plugin.parity.both_runs as parity_run
from vlm_lora_plugin.frameworks.swift.launch import with_plugin
from vlm_lora_plugin.parity.both_runs import run_in_swift, run_trainer
from vlm_lora_plugin.parity.demo import write_rows
from vlm_lora_plugin.parity.parity_job import ParityJob, Side
from vlm_lora_plugin.parity.reading import read_run

SWIFT, TRAINER = "swift", "trainer"
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


@pytest.fixture(autouse=True, scope="session")
def _one_thread_and_no_network():
    before = {name: os.environ.get(name) for name in QUIET}
    os.environ.update(QUIET)
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    from vlm_lora_monkey.tiny import write_tiny_folder

    return write_tiny_folder(tmp_path_factory.mktemp("parity-model") / "tiny-monkey")


@pytest.fixture(scope="session")
def models(model, tmp_path_factory):
    """A tiny model of each family and variant."""
    from vlm_lora_omnilmm.tiny import write_tiny_folder as omnilmm
    from vlm_lora_xcomposer.tiny import write_tiny_folder as xcomposer

    folder = tmp_path_factory.mktemp("parity-models")
    variants = ("xcomposer2", "xcomposer2_4khd", "xcomposer2_5")
    found = {variant: xcomposer(folder / variant, variant) for variant in variants}
    return {"monkey": model, "omnilmm": omnilmm(folder / "omnilmm"), **found}


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Eleven rows to train on, three to evaluate on, of all kinds."""
    folder = tmp_path_factory.mktemp("parity-data")
    return write_rows(folder, "train", 0, 11), write_rows(folder, "val", 50, 3)


@pytest.fixture(scope="session")
def make_job(models, rows, tmp_path_factory):
    """A job with a learning rate at which every bit of a difference grows, and LoRA dropout on."""

    def make(preset="lora+llm-lora", *, of="monkey", evaluate=False, optimizer=None, **settings):
        fields = {key: settings.pop(key) for key in ("dtype", "processes", "resume") if key in settings}
        settings = {"max_steps": 3, "gradient_accumulation_steps": 2, "dataloader_num_workers": 0, **settings}
        injected = preset == "lora+llm-lora" if of == "monkey" else preset != "full" and not preset.startswith("full-")
        overrides = {
            "preset": preset,
            **({"lora": {"lora_dropout": 0.1}} if injected else {}),
            "optimizer": {"learning_rate": 5e-3, "warmup_ratio": 0.2, **(optimizer or {})},
            "training": settings,
        }
        output = tmp_path_factory.mktemp("parity")
        val_data = rows[1] if evaluate else None
        return ParityJob(models[of], rows[0], output, val_data, overrides=overrides, **fields)

    return make


def forked_swift(command, arguments, *, environment, output):
    """Stand in for ``run_swift``: what Swift's command line would start, as forks with Swift imported."""
    variables = {**os.environ, **environment}
    ranks = int(variables.pop("NPROC_PER_NODE", "1"))
    line = ["-m", f"swift.cli.{command}", *with_plugin(arguments)]
    ended = warm(SWIFT).fork(line, env=variables, ranks=ranks)
    output.write((ended.stdout + ended.stderr).encode())
    return next((status for status in ended.statuses if status), 0)


@pytest.fixture(scope="session")
def train():
    """Train a job in one framework and read what it did.

    In a fork of a process that has the framework imported, which saves the seconds that this takes; the parity command
    itself and the commands that people type start processes of their own in their tests.
    """

    def run(framework, job, *, name=None, resume=None):
        job = replace(job, resume=resume)
        side = Side(framework, job.output / (name or framework))
        _, recipe = job.check()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parity_run, "run_swift", forked_swift)
            patch.setattr(parity_run, "subprocess", warm(TRAINER).subprocess)
            (run_trainer if framework == TRAINER else run_in_swift)(job, recipe, side)
        return read_run(side, job.processes)

    return run


@pytest.fixture(scope="session")
def both(train):
    """Train a job in both frameworks."""
    return lambda job: (train(TRAINER, job), train(SWIFT, job))


@pytest.fixture(scope="session")
def program():
    """Run ``vlm-lora`` in a process of its own, as a user does."""
    command = Path(sys.executable).with_name("vlm-lora")

    def run(*arguments, cwd=None, **environment):
        return subprocess.run(
            [command, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, **environment},
            check=False,
        )

    return run
