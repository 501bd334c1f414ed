"""Running a job: load, prepare, the unmodified Trainer, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import DistributedType
from rich.console import Console
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlm_lora_plugin.checkpoint.data_record import to_json
from vlm_lora_plugin.checkpoint.disk import writing
from vlm_lora_plugin.checkpoint.finished import check_finished
from vlm_lora_plugin.checkpoint.lock import LOCK, FolderLock
from vlm_lora_plugin.errors import TrainingError
from vlm_lora_plugin.frameworks.trainer import VlmLoraCallback
from vlm_lora_plugin.frameworks.trainer.answer_metric import AnswerMetric, sampled_answers
from vlm_lora_plugin.frameworks.trainer.kept_optimizer import KeptOptimizer
from vlm_lora_plugin.frameworks.trainer.parallel_layout import check_trainers_agree
from vlm_lora_plugin.frameworks.trainer.resource_monitor import ResourceMonitor
from vlm_lora_plugin.job.in_swift import train_in_swift
from vlm_lora_plugin.job.preflight import Plan, preflight
from vlm_lora_plugin.loading import load
from vlm_lora_plugin.names import ADAPTER_NAME
from vlm_lora_plugin.parallel.heartbeat import naming_the_missing
from vlm_lora_plugin.parallel.launcher import Launch, check_started, expected_ranks, first_rank
from vlm_lora_plugin.parallel.sharding import full_tensors
from vlm_lora_plugin.planning.record import sources_json
from vlm_lora_plugin.preparation import prepare
from vlm_lora_plugin.prepared.lineage import start_from
from vlm_lora_plugin.reporting.checking import checking_bar
from vlm_lora_plugin.reporting.console import make_console
from vlm_lora_plugin.reporting.data_table import data_table, skipped_lines
from vlm_lora_plugin.reporting.hardware_table import hardware_tree
from vlm_lora_plugin.reporting.log import JsonlLog, is_result, read_log
from vlm_lora_plugin.reporting.loss_picture import draw_loss
from vlm_lora_plugin.reporting.outlook import Outlook, why_not_moved
from vlm_lora_plugin.reporting.progress import ConsoleProgress
from vlm_lora_plugin.reporting.run_pictures import draw_memory, draw_rates
from vlm_lora_plugin.reporting.tree import component_tree

if TYPE_CHECKING:
    from vlm_lora_plugin.answering.samples import Sample
    from vlm_lora_plugin.diagnostics.resources import ResourceSummary
    from vlm_lora_plugin.job.train_job import TrainJob
    from vlm_lora_plugin.prepared.model import VlmLoraPeftModel


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
        resources: What limited the run.
        model: The trained model, still in memory; None when it was trained in another process.
        answers: Some of the trained model's, beside the known ones; None where none were asked for.
        not_moved: That the loss did not move, and why; empty where it did.
    """

    adapter: Path
    steps: int
    first_loss: float | None
    last_loss: float | None
    eval_loss: float | None
    metrics: Mapping[str, float]
    skipped: Mapping[str, int]
    resources: ResourceSummary | None
    model: VlmLoraPeftModel | None
    answers: Sample | None = None
    not_moved: str = ""


class _Begin(TrainerCallback):
    """Opens the output folder when the first step is done, and not before."""

    def __init__(self, plan: Plan) -> None:
        self._output, self._resumed = plan.output, plan.resumed
        self._texts, self._overwrite = _texts(plan), plan.job.overwrite

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._output.begun and state.is_world_process_zero:
            if self._resumed is None:
                self._output.begin(*self._texts, overwrite=self._overwrite)
            else:
                self._output.begin_again(self._resumed.kept_log)
                if self._resumed.longer:
                    self._output.lengthen(self._texts[0], self._texts[2])


def run(job: TrainJob, console: Console | None = None, launch: Launch | None = None) -> TrainResult:
    """Check a job, show what will be trained, train it, and save the adapter, log and pictures.

    Args:
        job: What to do.
        console: Where to show it; None for standard output.
        launch: How many processes ms-swift starts; None for what the recipe's hardware says. Those of the Trainer
            are started before: each of them runs the whole job.

    Raises:
        VlmLoraError: The job cannot be done. Before the first step is done the output folder stays as it was.
    """
    console = console or make_console()
    locked = FolderLock(job.output / LOCK, job.output, take_over=job.take_over) if first_rank() else nullcontext()
    with locked, naming_the_missing():
        plan = check_and_show(job, console, None if launch is None else launch.ranks)
        if job.framework == "trainer":
            check_started(plan.recipe)
        try:
            with writing(job.output):
                result = _train(plan, console, launch)
                if first_rank():
                    _check_finished(plan, result.steps)
                return result
        except BaseException:
            plan.output.abandon()
            raise


def check_and_show(job: TrainJob, console: Console, ranks: int | None = None) -> Plan:
    """Check a job and show what will be trained on how much data; writes nothing.

    Args:
        job: What to do.
        console: Where to show it.
        ranks: Processes that will train; None for those that the recipe's hardware says, or this process is among.

    Raises:
        VlmLoraError: The job cannot be done.
    """
    plan = preflight(job, partial(checking_bar, console))
    console.print(component_tree(plan.summary))
    if plan.hardware is not None:
        console.print(hardware_tree(plan.hardware, plan.hardware.check()))
    console.print(data_table(plan.statistics))
    skipped = skipped_lines(plan.skipped(), {name: data.rows for name, data in plan.statistics.items()})
    if skipped:
        console.print(skipped, style="yellow", highlight=False, markup=False)
    if plan.resumed is not None:
        for name, problem in plan.resumed.passed_over.items():
            console.print(f"passed over {name}: {problem}", style="yellow", highlight=False, markup=False)
        longer = f", after {plan.resumed.step} steps, which were the whole job" if plan.resumed.longer else ""
        console.print(f"going on from {plan.resumed.checkpoint}{longer}", highlight=False, markup=False)
    if job.parent is not None:
        kept = "the state of its optimizer" if job.keep_optimizer else "a fresh optimizer"
        console.print(f"starting from {job.parent.told}, with {kept}", highlight=False, markup=False)
    done = plan.resumed.step if plan.resumed is not None else 0
    outlook = Outlook.of(plan.recipe, len(plan.training), ranks or expected_ranks(plan.recipe), done)
    console.print(f"training: {outlook}", highlight=False, markup=False, soft_wrap=True)
    return plan


def _check_finished(plan: Plan, steps: int) -> None:
    """Check that the output folder holds what the job wrote; see :func:`check_finished`."""
    output = plan.output
    written: dict[Path, str | None] = dict(zip((output.recipe, output.data, output.sources), _texts(plan), strict=True))
    if plan.resumed is not None:  # they are as the job's first part wrote them; earlier versions had no sources
        written = dict.fromkeys((output.recipe, output.data))
    if plan.job.framework == "swift" and not (plan.resumed is not None and plan.resumed.finished):
        written[output.framework_log] = None
    check_finished(output, written, steps if plan.arguments.save_strategy == "steps" else None)


def _texts(plan: Plan) -> tuple[str, str, str]:
    """Return what is written when the first step is done: recipe, data and sources."""
    return plan.recipe.to_yaml(), to_json(plan.records, plan.files, plan.job.model), sources_json(plan.recipe)


def _run(trainer: Trainer, model: VlmLoraPeftModel, plan: Plan) -> None:
    if plan.resumed is None:
        trainer.train()
    elif plan.resumed.finished:  # the Trainer would take one step more
        model.load_adapter(str(plan.resumed.checkpoint), ADAPTER_NAME, is_trainable=True)
        plan.output.begin_again(plan.resumed.kept_log)
    else:
        trainer.train(resume_from_checkpoint=True)


def _train(plan: Plan, console: Console, launch: Launch | None) -> TrainResult:
    finished = plan.resumed is not None and plan.resumed.finished
    if plan.job.framework == "swift" and not finished:
        done = train_in_swift(plan, console, launch)
        _draw(plan)
        return _result(plan, done.steps, done.resources, None, done.answers)
    return _train_here(plan, console)


def _train_here(plan: Plan, console: Console) -> TrainResult:
    recipe, output = plan.recipe, plan.output
    base, processor = load(plan.job.model, recipe, dtype=plan.dtype, seed=recipe.seed)
    model = prepare(base, recipe)
    if plan.parent is not None:
        start_from(model, plan.parent)
    progress, monitor = ConsoleProgress(console), ResourceMonitor()
    log = JsonlLog(output.log, elapsed=0.0 if plan.resumed is None else plan.resumed.seconds)
    trainer = Trainer(
        model=model,
        args=plan.arguments,
        train_dataset=plan.training,
        eval_dataset=plan.validation,
        data_collator=processor.collate,
        callbacks=[_Begin(plan), VlmLoraCallback(recipe), monitor, log, progress],
    )
    if plan.moments is not None and plan.resumed is None:
        trainer.add_callback(KeptOptimizer(plan.moments))
    if plan.arguments.deepspeed and trainer.accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise TrainingError(
            f"DeepSpeed was asked for, and accelerate set up {trainer.accelerator.distributed_type.value}",
            why="Every process would hold and train the whole model.",
            fix="Unset ACCELERATE_USE_CPU and other variables of accelerate's launcher.",
        )
    check_trainers_agree(trainer, model, metric=recipe.evaluation.metric if plan.metric is not None else None)
    if plan.metric is not None and plan.validation is not None:
        rows = plan.validation.examples[: recipe.evaluation.max_rows]
        limit = recipe.evaluation.max_new_tokens
        answers = AnswerMetric(trainer, processor, rows, plan.metric, max_new_tokens=limit)
        answers.rehearse()
        trainer.add_callback(answers)
    trainer.remove_callback(PrinterCallback)  # its lines are the same numbers once more
    try:
        _run(trainer, model, plan)
    finally:
        progress.close()
    tensors = full_tensors(model.named_trainables(), keep=trainer.is_world_process_zero())
    if trainer.is_world_process_zero():
        output.save_adapter(partial(model.save_pretrained, state_dict=tensors))
        _draw(plan)
    sampled = sampled_answers(trainer, processor, model)
    trainer.accelerator.wait_for_everyone()  # then others may read what the first process wrote
    steps = plan.resumed.step if plan.resumed is not None and plan.resumed.finished else trainer.state.global_step
    return _result(plan, steps, monitor.summary, model, sampled)


def _draw(plan: Plan) -> None:
    output = plan.output
    lines = read_log(output.log)
    title = f"{plan.summary.family} {plan.job.model.name}, recipe {plan.summary.recipe}"
    draw_loss(lines, output.loss_picture, title=title)
    draw_rates(lines, output.rates_picture, title=title)
    draw_memory(lines, output.memory_picture, title=title)


def _result(
    plan: Plan,
    steps: int,
    resources: ResourceSummary | None,
    model: VlmLoraPeftModel | None,
    answers: Sample | None,
) -> TrainResult:
    output = plan.output
    lines = read_log(output.log) if output.log.is_file() else []  # another node may not see the folder
    losses = [line["loss"] for line in lines if "loss" in line]
    results = {key: value for line in lines for key, value in line.items() if is_result(key)}  # the last of each
    return TrainResult(
        adapter=output.adapter,
        steps=steps,
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        eval_loss=results.pop("eval_loss", None),
        metrics=results,
        skipped={name: len(problems) for name, problems in plan.skipped().items() if problems},
        resources=resources,
        model=model,
        answers=answers,
        not_moved=why_not_moved(lines, plan.recipe, steps),
    )
