"""In the Swift process of ``vlm-lora train --framework swift``: the results that every framework leaves."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlm_lora_plugin.answering.metrics import load_metric
from vlm_lora_plugin.checkpoint.output import OutputFolder
from vlm_lora_plugin.errors import TrainingError
from vlm_lora_plugin.frameworks.swift.job import Notes, SwiftJob
from vlm_lora_plugin.frameworks.swift.names import JOB_CALLBACK
from vlm_lora_plugin.frameworks.trainer.answer_metric import AnswerMetric, sampled_answers
from vlm_lora_plugin.frameworks.trainer.kept_optimizer import KeptOptimizer, Moments
from vlm_lora_plugin.frameworks.trainer.parallel_layout import check_trainers_agree
from vlm_lora_plugin.frameworks.trainer.resource_monitor import ResourceMonitor
from vlm_lora_plugin.parallel.heartbeat import tell_also
from vlm_lora_plugin.parallel.sharding import full_tensors
from vlm_lora_plugin.prepared.model import find_prepared
from vlm_lora_plugin.reporting.log import JsonlLog

if TYPE_CHECKING:
    from vlm_lora_plugin.answering.samples import Sample

_ARGUMENTS = "args.json"
"""Swift's own record of a run, which it copies into each checkpoint and reads again to infer and export."""


class JobCallback(TrainerCallback):
    """Opens the output folder when the first step is done, and writes the log, the answers' metric and the adapter.

    Swift itself starts in a temporary folder, so that nothing in the output folder changes before.

    Args:
        trainer: Swift's trainer, not yet built.

    Raises:
        TrainingError: The process was not started by ``vlm-lora train``.
    """

    def __init__(self, trainer: Any) -> None:
        job = SwiftJob.of_process()
        if job is None:
            raise TrainingError(
                f"--callbacks {JOB_CALLBACK} works in a run that `vlm-lora train --framework swift` started",
                fix="Leave it out.",
            )
        self._job = job
        self._output = OutputFolder(Path(self._job.output))
        self._trainer = trainer
        self._monitor = ResourceMonitor()
        self._answers: Sample | None = None
        tell_also(self._warn)

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the callbacks that need the trainer built, and try whether the model can answer."""
        trainer = self._trainer
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self._monitor)
        trainer.add_callback(JsonlLog(self._output.log, elapsed=self._job.elapsed))
        model = find_prepared(trainer.model)
        if model is not None:
            check_trainers_agree(trainer, model, metric=self._job.metric)
        if self._job.moments is not None:
            trainer.add_callback(KeptOptimizer(Moments(**self._job.moments)))
        if self._job.metric is not None and trainer.eval_dataset is not None:
            evaluation = find_prepared(trainer.model).vlm_lora.recipe.evaluation  # type: ignore[union-attr]
            answers = AnswerMetric(
                trainer,
                trainer.template.inner,
                trainer.eval_dataset.examples[: evaluation.max_rows],
                load_metric(self._job.metric),
                max_new_tokens=evaluation.max_new_tokens,
            )
            answers.rehearse()
            trainer.add_callback(answers)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Open the output folder once, and say how far the run is."""
        if not self._output.begun:
            self._begin(args, state)
        self._note(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the adapter, and say what limited the run."""
        model = find_prepared(kwargs["model"])
        if model is not None:
            tensors = full_tensors(model.named_trainables(), keep=state.is_world_process_zero)
            if state.is_world_process_zero:
                self._output.save_adapter(partial(model.save_pretrained, state_dict=tensors))
            self._answers = sampled_answers(self._trainer, self._trainer.template.inner, model)
        self._monitor.on_train_end(args, state, control, **kwargs)
        self._note(state)

    def _begin(self, args: TrainingArguments, state: TrainerState) -> None:
        swift_folder, checkpoints = Path(str(args.output_dir)), self._output.checkpoints
        if state.is_world_process_zero:
            if self._job.kept_log is None:
                self._output.begin(self._job.recipe, self._job.data, self._job.sources)
            else:
                self._output.begin_again(self._job.kept_log)
                if self._job.longer:
                    self._output.lengthen(self._job.recipe, self._job.sources)
            checkpoints.mkdir(exist_ok=True)
            recorded = json.loads((swift_folder / _ARGUMENTS).read_text("utf-8"))
            recorded["output_dir"] = str(checkpoints.absolute())
            (checkpoints / _ARGUMENTS).write_text(json.dumps(recorded, indent=2, ensure_ascii=False), "utf-8")
        self._output.begun = True
        args.output_dir = str(checkpoints.absolute())

    def _note(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            summary = self._monitor.summary
            resources = None if summary is None else asdict(summary)
            answers = None if self._answers is None else self._answers.document()
            Notes(True, state.global_step, state.max_steps, resources, answers).write(Path(self._job.notes))

    def _warn(self, text: str) -> None:
        with self._job.warnings.open("a", encoding="utf-8") as stream:
            stream.write(f"{text}\n")
