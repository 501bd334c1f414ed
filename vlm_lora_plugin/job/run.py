"""Running a job: load, prepare, the unmodified Trainer, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlm_lora_plugin.frameworks.answers import AnswerMetric
from vlm_lora_plugin.frameworks.trainer import VlmLoraCallback
from vlm_lora_plugin.job.preflight import Plan, preflight
from vlm_lora_plugin.loading import load
from vlm_lora_plugin.preparation import prepare
from vlm_lora_plugin.reporting.checking import checking_bar
from vlm_lora_plugin.reporting.console import make_console
from vlm_lora_plugin.reporting.data_table import data_table, skipped_lines
from vlm_lora_plugin.reporting.log import JsonlLog, is_result, read_log
from vlm_lora_plugin.reporting.loss_picture import draw_loss
from vlm_lora_plugin.reporting.progress import ConsoleProgress
from vlm_lora_plugin.reporting.tree import component_tree

if TYPE_CHECKING:
    from vlm_lora_plugin.job.output import OutputFolder
    from vlm_lora_plugin.job.settings import TrainJob
    from vlm_lora_plugin.prepared_model import VlmLoraPeftModel


@dataclass(frozen=True)
class TrainResult:
    """What a finished job leaves.

    Attributes:
        adapter: The folder that ``load_adapter`` takes.
        steps: Optimizer steps done.
        first_loss: Of the first logged step, nats per supervised token.
        last_loss: Of the last logged step.
        eval_loss: Of the last evaluation, or None.
        metrics: Of the last evaluation, by name, ``eval_exact_match``.
        skipped: Rows left out, by the name of the data set; empty when none was.
        model: The trained model, still in memory.
    """

    adapter: Path
    steps: int
    first_loss: float | None
    last_loss: float | None
    eval_loss: float | None
    metrics: Mapping[str, float]
    skipped: Mapping[str, int]
    model: VlmLoraPeftModel


class _Begin(TrainerCallback):
    """Opens the output folder when the first step is done, and not before."""

    def __init__(self, output: OutputFolder, recipe: str) -> None:
        self._output, self._recipe = output, recipe

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._output.begun and state.is_world_process_zero:
            self._output.begin(self._recipe)


def run(job: TrainJob, console: Console | None = None) -> TrainResult:
    """Check a job, show what will be trained, train it, and save the adapter, log and picture.

    Args:
        job: What to do.
        console: Where to show it; None for standard output.

    Raises:
        VlmLoraError: The job cannot be done. Before the first step is done the output folder stays as it was.
    """
    console = console or make_console()
    plan = preflight(job, partial(checking_bar, console))
    console.print(component_tree(plan.summary))
    console.print(data_table(plan.statistics))
    skipped = skipped_lines(plan.skipped(), {name: data.rows for name, data in plan.statistics.items()})
    if skipped:
        console.print(skipped, style="yellow", highlight=False, markup=False)
    try:
        return _train(plan, console)
    except BaseException:
        plan.output.abandon()
        raise


def _train(plan: Plan, console: Console) -> TrainResult:
    recipe, output = plan.recipe, plan.output
    base, processor = load(plan.job.model, dtype=plan.dtype, seed=recipe.seed)
    model = prepare(base, recipe)
    progress = ConsoleProgress(console)
    trainer = Trainer(
        model=model,
        args=plan.arguments,
        train_dataset=plan.training,
        eval_dataset=plan.validation,
        data_collator=processor.collate,
        callbacks=[_Begin(output, recipe.to_yaml()), VlmLoraCallback(recipe), JsonlLog(output.log), progress],
    )
    if plan.metric is not None and plan.validation is not None:
        rows = plan.validation.examples[: recipe.evaluation.max_rows]
        limit = recipe.evaluation.max_new_tokens
        answers = AnswerMetric(trainer, processor, rows, plan.metric, max_new_tokens=limit)
        answers.rehearse()
        trainer.add_callback(answers)
    trainer.remove_callback(PrinterCallback)  # its lines are the same numbers once more
    try:
        trainer.train()
    finally:
        progress.close()
    output.save_adapter(model.save_pretrained)
    lines = read_log(output.log)
    draw_loss(lines, output.picture, title=f"{plan.summary.family} {plan.job.model.name}, recipe {plan.summary.recipe}")
    losses = [line["loss"] for line in lines if "loss" in line]
    results = {key: value for line in lines for key, value in line.items() if is_result(key)}  # the last of each
    return TrainResult(
        adapter=output.adapter,
        steps=trainer.state.global_step,
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        eval_loss=results.pop("eval_loss", None),
        metrics=results,
        skipped={name: len(problems) for name, problems in plan.skipped().items() if problems},
        model=model,
    )
