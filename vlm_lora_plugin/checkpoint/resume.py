"""Where an interrupted job goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_lora_plugin.checkpoint.completion import check_resumable, checkpoints, why_incomplete
from vlm_lora_plugin.checkpoint.load import read_manifest
from vlm_lora_plugin.checkpoint.output import OutputFolder
from vlm_lora_plugin.checkpoint.resume_state import TRAINER_STATE
from vlm_lora_plugin.documents import differences
from vlm_lora_plugin.errors import OutputError, RecipeError, listed
from vlm_lora_plugin.outside.json_text import read_json
from vlm_lora_plugin.recipe import Recipe


@dataclass(frozen=True)
class ResumePoint:
    """The newest complete checkpoint of a job, and its log up to there.

    Attributes:
        checkpoint: The checkpoint's folder.
        kept_log: The lines of the log up to the checkpoint's step.
        seconds: That the job had taken by then.
        step: Optimizer steps done.
        finished: Whether that was the job's last step: only the adapter may be missing.
        passed_over: Newer checkpoints that are not complete -> what is wrong with them.
    """

    checkpoint: Path
    kept_log: str
    seconds: float
    step: int
    finished: bool
    passed_over: Mapping[str, str] = field(default_factory=dict)


def find_resume_point(output: OutputFolder, dtype: str, recipe: Recipe) -> ResumePoint:
    """Find the newest complete checkpoint in a job's output folder; changes nothing.

    Args:
        output: The job's folder.
        dtype: Name of the dtype that the frozen weights are to have, ``bfloat16``.
        recipe: The job's recipe as it lies in the folder.

    Raises:
        OutputError: There is none, or it was trained with frozen weights of another dtype.
        RecipeError: It was trained with another recipe than lies in the folder now.
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
            edited = recipe_differences(trained.recipe, recipe)
            if edited:
                raise RecipeError(
                    f"{output.recipe} was changed since the job was started (then / now): {listed(edited)}",
                    why="Going on with another recipe would give a result that no recipe describes.",
                    fix="Put it back, or start a new job in another folder.",
                )
            state = read_json(checkpoint / TRAINER_STATE)
            step, last = int(state["global_step"]), int(state["max_steps"])
            kept, seconds = _log_until(output.log, step)
            return ResumePoint(checkpoint, kept, seconds, step, finished=step >= last, passed_over=problems)
        problems[checkpoint.name] = problem
    told = [f"{name}: {problem}" for name, problem in problems.items()]
    raise OutputError(
        f"There is no complete checkpoint in {output.checkpoints}" + (f": {listed(told)}" if told else ""),
        why="The job stopped before its first one was saved; they come every training.save_steps steps.",
        fix="Start it anew with --overwrite.",
    )


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
