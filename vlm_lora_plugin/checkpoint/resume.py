"""Where an interrupted job goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.checkpoint.completion import check_resumable, checkpoints, why_incomplete
from vlm_lora_plugin.checkpoint.manifest_file import read_manifest
from vlm_lora_plugin.checkpoint.output import OutputFolder, of_length
from vlm_lora_plugin.checkpoint.resume_state import TRAINER_STATE
from vlm_lora_plugin.documents import differences
from vlm_lora_plugin.errors import OutputError, RecipeError, listed
from vlm_lora_plugin.outside.json_text import read_json
from vlm_lora_plugin.recipe import Recipe

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import TrainingSettings


@dataclass(frozen=True)
class ResumePoint:
    """The newest complete checkpoint of a job, and its log up to there.

    Attributes:
        checkpoint: The checkpoint's folder.
        kept_log: The lines of the log up to the checkpoint's step.
        seconds: That the job had taken by then.
        step: Optimizer steps done.
        finished: Whether that was the job's last step: only the adapter may be missing.
        longer: Whether it was, and the recipe asks for more steps now.
        passed_over: Newer checkpoints that are not complete -> what is wrong with them.
    """

    checkpoint: Path
    kept_log: str
    seconds: float
    step: int
    finished: bool
    longer: bool = False
    passed_over: Mapping[str, str] = field(default_factory=dict)


def find_resume_point(output: OutputFolder, dtype: str, recipe: Recipe) -> ResumePoint:
    """Find the newest complete checkpoint in a job's output folder; changes nothing.

    Args:
        output: The job's folder.
        dtype: Name of the dtype that the frozen weights are to have, ``bfloat16``.
        recipe: The job's recipe as it is to go on.

    Raises:
        OutputError: There is none, or it was trained with frozen weights of another dtype.
        RecipeError: It was trained with another recipe, and not one that differs in the length of a finished job
            alone; or that length is not more than was done.
        CheckpointError: It holds what was trained alone, with which no run can go on.
    """
    problems: dict[str, str] = {}
    for checkpoint in checkpoints(output.checkpoints):
        problem = why_incomplete(checkpoint)
        if problem is None:
            check_resumable(checkpoint)
            trained = read_manifest(checkpoint)
            if trained.dtype != dtype:
                raise OutputError(
                    f"The job in {output.folder} was started with frozen weights in {trained.dtype}, not {dtype}",
                    why="In another dtype it would come to another result.",
                    fix="Give --dtype as it was then.",
                )
            state = read_json(checkpoint / TRAINER_STATE)
            step, last = int(state["global_step"]), int(state["max_steps"])
            edited = recipe_differences(trained.recipe, recipe)
            length = of_length(edited)
            if edited and not (length and step >= last):
                raise RecipeError(
                    f"{output.recipe} was changed since the job was started (then / now): {listed(edited)}",
                    why=f"The job has done {step} of its {last} steps; a longer one's schedule differs from its first."
                    if length
                    else "Going on with another recipe would give a result that no recipe describes.",
                    fix="Finish it first, by --resume alone, and then train it longer."
                    if length
                    else "Put it back, or start a new job in another folder.",
                )
            if edited:
                _check_longer(recipe.training, step, float(state["epoch"] or 0.0))
            kept, seconds = _log_until(output.log, step)
            finished = step >= last and not edited
            return ResumePoint(checkpoint, kept, seconds, step, finished, bool(edited), passed_over=problems)
        problems[checkpoint.name] = problem
    told = [f"{name}: {problem}" for name, problem in problems.items()]
    raise OutputError(
        f"There is no complete checkpoint in {output.checkpoints}" + (f": {listed(told)}" if told else ""),
        why="The job stopped before its first one was saved; they come every training.save_steps steps.",
        fix="Start it anew with --overwrite.",
    )


def _check_longer(training: TrainingSettings, step: int, epoch: float) -> None:
    """Refuse a length that a finished job has behind it.

    Raises:
        RecipeError: It is not more than was done.
    """
    if training.max_steps > 0 and training.max_steps <= step:
        said, done = f"training.max_steps is {training.max_steps}", f"{step} steps"
    elif training.max_steps < 0 and training.num_train_epochs <= epoch:
        said, done = f"training.num_train_epochs is {training.num_train_epochs:g}", f"{epoch:g} epochs"
    else:
        return
    raise RecipeError(f"{said}, and the job has done {done}", fix="Give more, or leave it out.")


def recipe_differences(trained: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Return where a manifest's recipe and another differ; keys that its writer did not know yet have their default."""
    return differences(Recipe.parse(trained, source="the manifest").document(), recipe.document())


def _log_until(log: Path, last: int) -> tuple[str, float]:
    """Return the lines of a log up to a step, and the seconds of the last one."""
    kept, seconds = [], 0.0
    for text in log.read_text("utf-8").splitlines() if log.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:  # the job was killed while it wrote this line, its last
            break
        if line["step"] <= last:
            kept.append(text + "\n")
            seconds = float(line["seconds"])
    return "".join(kept), seconds
