"""Running a job in ms-swift: ``swift sft`` in a process of its own, shown and kept like any other job."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerControl, TrainerState

from vlm_lora_plugin.answering.samples import Sample
from vlm_lora_plugin.checkpoint.data_record import to_json
from vlm_lora_plugin.checkpoint.lock import check_still_held
from vlm_lora_plugin.diagnostics.resources import ResourceSummary
from vlm_lora_plugin.errors import OutputError, SwiftError, TrainingError
from vlm_lora_plugin.frameworks.swift.arguments import plugin_arguments
from vlm_lora_plugin.frameworks.swift.job import JOB_VARIABLE, Notes, SwiftJob
from vlm_lora_plugin.frameworks.swift.launch import run_swift
from vlm_lora_plugin.frameworks.swift.names import JOB_CALLBACK
from vlm_lora_plugin.parallel.launcher import Launch, check_deepspeed, on_cpu, swift_processes, wanted_launch
from vlm_lora_plugin.planning.record import sources_json
from vlm_lora_plugin.reporting.log import read_log
from vlm_lora_plugin.reporting.progress import ConsoleProgress

if TYPE_CHECKING:
    from rich.console import Console

    from vlm_lora_plugin.job.preflight import Plan

_REFUSED = 2
"""Swift's exit code where this package, or Swift's parser, refused the command."""

_TAIL = 30  # lines of what Swift printed that an error shows

_OUTPUT_ERROR = f"{OutputError.__module__}.{OutputError.__qualname__}: "
_RANK = re.compile(r"^\[rank\d+\]:\s?")  # torch's, before each line of a traceback


@dataclass(frozen=True)
class SwiftResult:
    """What is known of a finished job besides its files.

    Attributes:
        steps: Optimizer steps done.
        resources: What limited the run, or None where the Swift process did not say.
        answers: Some of the trained model's, or None where none were asked for.
    """

    steps: int
    resources: ResourceSummary | None
    answers: Sample | None = None


def train_in_swift(plan: Plan, console: Console, launch: Launch | None = None) -> SwiftResult:
    """Run a checked job with ``swift sft``; its results go to the plan's output folder.

    What Swift prints goes to ``swift.log`` there.

    Args:
        plan: The job, not one whose last step is done already.
        console: Where progress is shown.
        launch: How many processes Swift starts; None for what the recipe's hardware says.

    Raises:
        TrainingError: Swift failed. Before the first step is done the output folder stays as it was.
        OutputError: The folder cannot be written to, or is no longer this job's; Swift was ended.
        SwiftError: ms-swift is not installed, or of a version that is not supported, or refused the job.
        HardwareError: The processes cannot be started here.
    """
    processes = swift_processes(launch or wanted_launch(plan.recipe, None, None))
    if plan.hardware is not None and plan.hardware.stage:
        check_deepspeed()
    with tempfile.TemporaryDirectory(prefix="vlm-lora-swift-") as name:
        folder = Path(name)
        notes, printed = folder / "notes.json", folder / "printed.log"
        job = SwiftJob(
            output=str(plan.output.folder.absolute()),
            recipe=plan.recipe.to_yaml(),
            sources=sources_json(plan.recipe),
            data=to_json(plan.records, plan.files, plan.job.model),
            kept_log=None if plan.resumed is None else plan.resumed.kept_log,
            elapsed=0.0 if plan.resumed is None else plan.resumed.seconds,
            metric=plan.recipe.evaluation.metric if plan.metric is not None else None,
            notes=str(notes),
            check_images=plan.job.check_images,
            parent=None if plan.parent is None else str(plan.parent.absolute()),
            moments=None if plan.moments is None or plan.resumed is not None else asdict(plan.moments),
            longer=plan.resumed is not None and plan.resumed.longer,
        )
        job.write(folder / "job.json")
        kept = 0 if plan.resumed is None else len(plan.resumed.kept_log.splitlines())
        progress = _Progress(console, plan.output.log, job, kept, plan.recipe.training.logging_steps)
        try:
            with printed.open("wb") as stream:
                code = run_swift(
                    "sft",
                    _arguments(plan, folder / "swift", launched=bool(processes)),
                    environment={JOB_VARIABLE: str(folder / "job.json"), **processes},
                    output=stream,
                    meanwhile=partial(_look, progress, plan.output.folder),
                )
            progress.look()
        finally:
            progress.close()
            told = Notes.read(notes)
            plan.output.begun = told.begun
            if told.begun:
                shutil.copyfile(printed, plan.output.framework_log)
        if code != 0:
            lines = printed.read_text("utf-8", errors="replace").splitlines()
            failed = _output_error(lines)
            if failed is not None:
                raise failed
            kind = SwiftError if code == _REFUSED else TrainingError
            raise kind(
                f"swift sft failed with exit code {code}",
                why="\n".join(lines[-_TAIL:]),
                fix=f"All that it printed: {plan.output.framework_log}" if told.begun else "",
            )
    resources = None
    if told.resources is not None:
        resources = ResourceSummary(**{**told.resources, "checkpointed": tuple(told.resources["checkpointed"])})
    answers = None if told.answers is None else Sample.read(told.answers)
    return SwiftResult(told.step, resources, answers)


def _arguments(plan: Plan, folder: Path, *, launched: bool) -> list[str]:
    job = plan.job
    options: dict[str, Any] = {
        "model": job.model.absolute(),
        "dataset": job.data.absolute(),
        "output_dir": folder,
        "torch_dtype": str(plan.dtype).removeprefix("torch."),
        "add_version": "false",
        "disable_tqdm": "true",
        "report_to": "none",
        "callbacks": JOB_CALLBACK,
    }
    if plan.hardware is not None and plan.hardware.deepspeed is not None:
        file = folder.with_name("deepspeed.json")
        file.write_text(json.dumps(plan.hardware.deepspeed), "utf-8")
        options["deepspeed"] = file
    if launched and on_cpu():  # accelerate refuses a backend where there is nobody to talk to
        options["ddp_backend"] = "gloo"
    if job.val_data is not None:
        options["val_dataset"] = job.val_data.absolute()
    if plan.resumed is not None:
        options["resume_from_checkpoint"] = plan.resumed.checkpoint.absolute()
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [*given, *plugin_arguments(plan.recipe.document())]


def _output_error(lines: list[str]) -> OutputError | None:
    """Return the error about the output folder with which Swift ended, from what it printed; or None."""
    plain = [_RANK.sub("", line) for line in lines]
    starts = [number for number, line in enumerate(plain) if line.startswith(_OUTPUT_ERROR)]
    if not starts:
        return None
    what, *more = plain[starts[-1] : starts[-1] + 3]
    why, fix = (*more, "", "")[:2]
    return OutputError(what.removeprefix(_OUTPUT_ERROR), why=why, fix=fix)


def _look(progress: _Progress, folder: Path) -> None:
    """Show what is new, as long as the folder is this job's."""
    check_still_held(folder)
    progress.look()


class _Progress:
    """Shows a job's progress from its log, which another process writes."""

    def __init__(self, console: Console, log: Path, job: SwiftJob, kept: int, logging_steps: int) -> None:
        self._shown, self._logging_steps = ConsoleProgress(console), logging_steps
        self._console, self._log, self._notes, self._warnings = console, log, Path(job.notes), job.warnings
        self._warned = 0
        self._lines = kept  # of an earlier part of the same job, shown then
        self._started = False
        self._state, self._control = TrainerState(), TrainerControl()

    def look(self) -> None:
        """Show what is new."""
        self._warn()
        told = Notes.read(self._notes)
        if not told.begun:
            return
        arguments: Any = None  # the progress asks nothing of them
        self._state.max_steps, self._state.global_step = told.last, told.step
        if not self._started:
            self._started = True
            self._shown.on_train_begin(arguments, self._state, self._control)
        self._control.should_log = told.step % self._logging_steps == 0  # then its line says more
        self._shown.on_step_end(arguments, self._state, self._control)
        lines = self._read()
        for line in lines[self._lines :]:
            self._state.global_step = line["step"]
            self._shown.on_log(arguments, self._state, self._control, logs=line)
        self._lines = len(lines)

    def close(self) -> None:
        """Stop drawing, also after a failure."""
        self._shown.close()

    def _warn(self) -> None:
        if self._warnings.is_file():
            lines = self._warnings.read_text("utf-8", errors="replace").splitlines()
            for line in lines[self._warned :]:
                self._console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
            self._warned = len(lines)

    def _read(self) -> list[dict[str, Any]]:
        if not self._log.is_file():
            return []
        try:
            return read_log(self._log)
        except ValueError:  # its last line is being written
            return []
