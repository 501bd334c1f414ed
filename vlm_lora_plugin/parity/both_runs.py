"""One job in both frameworks, each in processes of its own, and what the comparison says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.errors import TrainingError
from vlm_lora_plugin.frameworks.recorder import RECORD_VARIABLE
from vlm_lora_plugin.frameworks.swift.arguments import plugin_arguments
from vlm_lora_plugin.frameworks.swift.launch import run_swift
from vlm_lora_plugin.frameworks.swift.names import RECORDER
from vlm_lora_plugin.parallel.children import environment, module_line, module_words
from vlm_lora_plugin.parallel.launcher import free_port
from vlm_lora_plugin.parallel.parent_death import as_launcher
from vlm_lora_plugin.parity.compare import Difference, compare
from vlm_lora_plugin.parity.parity_job import FRAMEWORKS, ParityJob, Side, TrainerTask
from vlm_lora_plugin.parity.reading import Run, read_run
from vlm_lora_plugin.parity.rows import name_rows
from vlm_lora_plugin.planning.dtypes import DTYPES
from vlm_lora_plugin.planning.effect import check_evaluation, check_in_model, check_schedule
from vlm_lora_plugin.plugins.manager import get_manager

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import Recipe

_TRAINER_SIDE = "vlm_lora_plugin.parity.trainer_side"
_TAIL = 30  # lines of what a framework printed that are shown when it fails


@dataclass(frozen=True)
class Outcome:
    """What a comparison found.

    Attributes:
        job: What was compared.
        recipe: The resolved recipe that both were given.
        runs: What each framework did, the Trainer first.
        difference: The first one, or None.
    """

    job: ParityJob
    recipe: Recipe
    runs: tuple[Run, Run]
    difference: Difference | None


def run(job: ParityJob) -> Outcome:
    """Train in both frameworks, one after the other, and compare.

    Args:
        job: What to train.

    Raises:
        RecipeError: A key that the user set would have no effect.
        VlmLoraError: The job cannot be done otherwise, or a framework failed.
    """
    family, recipe = job.check()
    check_evaluation(recipe, validates=job.val_data is not None)
    check_schedule(recipe)
    recipe = check_in_model(recipe, get_manager().outline(family, job.model), family)
    sides = {name: Side(name, job.output / name) for name in FRAMEWORKS}
    run_trainer(job, recipe, sides["trainer"])
    run_in_swift(job, recipe, sides["swift"])
    left, right = (read_run(side, job.processes) for side in sides.values())
    difference = compare(left, right)
    if difference is not None:
        difference = name_rows(job, recipe, difference)
    return Outcome(job, recipe, (left, right), difference)


def run_trainer(job: ParityJob, recipe: Recipe, side: Side) -> None:
    """Train with an unmodified Trainer.

    Raises:
        TrainingError: It failed.
    """
    _clear(side)
    task = TrainerTask(
        model=str(job.model),
        data=str(job.data),
        val_data=None if job.val_data is None else str(job.val_data),
        recipe=recipe.document(),
        dtype=_dtype(job),
        folder=str(side.folder),
        resume=None if job.resume is None else str(job.resume),
        gloo=job.processes > 1,
    )
    file = side.folder / "task.json"
    task.write(file)
    line = [*module_words(_TRAINER_SIDE), str(file)]
    if job.processes > 1:
        launcher = module_line("torch.distributed.run")
        line = [*launcher, "--standalone", "--nproc-per-node", str(job.processes), *line]
    else:
        line = [sys.executable, *line]
    with side.printed.open("wb") as printed, as_launcher():
        done = subprocess.run(line, stdout=printed, stderr=subprocess.STDOUT, check=False, env=environment())
    code = done.returncode
    _check(code, side)


def run_in_swift(job: ParityJob, recipe: Recipe, side: Side) -> None:
    """Train with ``swift sft``.

    Args:
        job: What to train.
        recipe: The resolved recipe.
        side: Where its results go.

    Raises:
        TrainingError: It failed.
        SwiftError: ms-swift is not installed, or of a version that is not supported.
    """
    _clear(side)
    further = {RECORD_VARIABLE: str(side.records.absolute())}
    if job.processes > 1:
        further |= {"NPROC_PER_NODE": str(job.processes), "MASTER_PORT": os.environ.get("MASTER_PORT", free_port())}
    with side.printed.open("wb") as printed:
        code = run_swift("sft", swift_arguments(job, recipe, side), environment=further, output=printed)
    _check(code, side)


def swift_arguments(job: ParityJob, recipe: Recipe, side: Side) -> list[str]:
    """Return Swift's arguments for a job; everything else comes from the recipe."""
    paths: dict[str, Any] = {"model": job.model, "dataset": job.data, "output_dir": side.checkpoints}
    if job.val_data is not None:
        paths["val_dataset"] = job.val_data
    if job.resume is not None:
        paths["resume_from_checkpoint"] = job.resume
    arguments = [text for name, path in paths.items() for text in (f"--{name}", str(Path(path).absolute()))]
    arguments += ["--torch_dtype", _dtype(job), "--add_version", "false", "--callbacks", RECORDER]
    if job.processes > 1:
        arguments += ["--ddp_backend", "gloo"]
    return [*arguments, *plugin_arguments(recipe.document())]


def _dtype(job: ParityJob) -> str:
    return str(DTYPES[job.dtype]).removeprefix("torch.")


def _clear(side: Side) -> None:
    for folder in (side.records, side.checkpoints):
        shutil.rmtree(folder, ignore_errors=True)
    side.folder.mkdir(parents=True, exist_ok=True)


def _check(code: int, side: Side) -> None:
    if code != 0:
        lines = side.printed.read_text("utf-8", errors="replace").splitlines()
        raise TrainingError(
            f"{side.framework} failed with exit code {code}",
            why="\n".join(lines[-_TAIL:]),
            fix=f"All that it printed: {side.printed}",
        )
