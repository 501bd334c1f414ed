"""``vlm-lora train``: from images and conversations to an adapter on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm_lora_plugin.cli.options import (
    COMMAND_LINE,
    BadSampleOption,
    CheckImagesOption,
    DtypeOption,
    Framework,
    OutsideImagesOption,
    PresetOption,
    RecipeOption,
    SetOption,
    TakeOverOption,
    TracebackOption,
    data_assignments,
    name_of,
    overrides,
)

if TYPE_CHECKING:
    from rich.console import Console

    from vlm_lora_plugin.job.train import TrainResult
    from vlm_lora_plugin.job.train_job import TrainJob

DEMO_OUTPUT = Path("runs/demo")


def train(
    ctx: typer.Context,
    model: Annotated[
        Path | None,
        typer.Argument(help="A model folder; --resume knows it. With --demo a family's name, monkey if left out."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="Training data, JSONL or JSON; --resume knows it.")
    ] = None,
    val_data: Annotated[Path | None, typer.Option("--val-data", help="Data to evaluate on, same form.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the results.")] = None,
    recipe: RecipeOption = None,
    preset: PresetOption = None,
    assignments: SetOption = None,
    dtype: DtypeOption = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", min=1, help="Stop after so many steps.")] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="With --val-data: exact_match, or package.module:function of yours."),
    ] = None,
    on_bad_sample: BadSampleOption = None,
    allow_outside_images: OutsideImagesOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that the folder holds.")] = False,
    take_over: TakeOverOption = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the job in the folder from its newest complete checkpoint.")
    ] = False,
    from_adapter: Annotated[
        Path | None,
        typer.Option(
            "--from-adapter",
            help="Start from this adapter, checkpoint or finished job; its recipe, unless one is given.",
        ),
    ] = None,
    keep_optimizer: Annotated[
        bool, typer.Option("--keep-optimizer", help="With --from-adapter: keep the state of its optimizer, too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show everything, and the resolved recipe; write nothing.")
    ] = False,
    check_images: CheckImagesOption = True,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="Processes of this node, one a device; starts torchrun.")
    ] = None,
    nnodes: Annotated[int | None, typer.Option("--nnodes", min=1, help="Nodes of the job, for torchrun.")] = None,
    node_rank: Annotated[int | None, typer.Option("--node-rank", min=0, help="This node's number, from 0.")] = None,
    master_addr: Annotated[str | None, typer.Option("--master-addr", help="Address of node 0.")] = None,
    master_port: Annotated[int | None, typer.Option("--master-port", help="Port on node 0.")] = None,
    rdzv_endpoint: Annotated[
        str | None, typer.Option("--rdzv-endpoint", help="HOST:PORT where nodes meet, in place of the three above.")
    ] = None,
    rdzv_id: Annotated[str | None, typer.Option("--rdzv-id", help="The job's name where nodes meet.")] = None,
    framework: Annotated[
        Framework, typer.Option("--framework", help="What trains: transformers' Trainer, or ms-swift; same result.")
    ] = Framework.trainer,
    demo: Annotated[bool, typer.Option("--demo", help="Train a tiny model on handwritten digits instead.")] = False,
    traceback: TracebackOption = False,
) -> None:
    """Train an adapter. Everything is checked and shown before the first step; nothing is written until it is done."""
    if demo:
        given = (data, val_data, recipe, preset, assignments, dtype, max_steps, metric, on_bad_sample, gpus, nnodes)
        if (
            any(value is not None for value in given)
            or allow_outside_images
            or from_adapter is not None
            or resume
            or dry_run
            or framework is not Framework.trainer
        ):
            raise typer.BadParameter(
                "--demo takes no data, recipe or job to resume; it brings its own", param_hint="--demo"
            )
        from vlm_lora_plugin.demo import run_demo

        run_demo(output or DEMO_OUTPUT, None if model is None else str(model))
        return
    if resume and output is not None and (model is None or data is None):
        model, data, val_data = _as_started(output, model, data, val_data)
    if model is None or data is None or output is None:
        needed = (("--output", output),) if resume else (("MODEL", model), ("--data", data), ("--output", output))
        missing = [name for name, value in needed if value is None]
        raise typer.BadParameter("needed, unless --demo is given", param_hint=" and ".join(missing))
    if metric is not None and val_data is None:
        raise typer.BadParameter("needs --val-data", param_hint="--metric")
    if resume and overwrite:
        raise typer.BadParameter("goes on with the results that --overwrite replaces", param_hint="--resume")
    from vlm_lora_plugin.job.train_job import TrainJob
    from vlm_lora_plugin.parallel.launcher import is_rank, launch_job, wanted_launch
    from vlm_lora_plugin.reporting.console import make_console

    job = TrainJob(
        model=model,
        data=data,
        output=output,
        val_data=val_data,
        recipe=recipe,
        overrides=overrides(
            [*(assignments or ()), *data_assignments(on_bad_sample, allow_outside_images)], preset, max_steps, metric
        ),
        dtype=name_of(dtype),
        overwrite=overwrite,
        take_over=take_over,
        resume=resume,
        from_adapter=from_adapter,
        keep_optimizer=keep_optimizer,
        check_images=check_images,
        framework=framework.value,
    )
    _, resolved = job.check()
    started = None
    if not dry_run and not is_rank():
        meeting = {
            "node-rank": node_rank,
            "master-addr": master_addr,
            "master-port": master_port,
            "rdzv-endpoint": rdzv_endpoint,
            "rdzv-id": rdzv_id,
            "rdzv-backend": None if rdzv_endpoint is None else "c10d",
        }
        started = wanted_launch(resolved, gpus, nnodes, {key: v for key, v in meeting.items() if v is not None})
        if started is not None and framework is Framework.trainer:
            raise typer.Exit(launch_job(started, resolved, ctx.find_root().meta[COMMAND_LINE]))
    from vlm_lora_plugin.job.train import check_and_show, run  # imports torch: after what can be refused without it

    console = make_console()
    if dry_run:
        check_and_show(job, console, None if gpus is None and nnodes is None else (gpus or 1) * (nnodes or 1))
        console.print(f"\n{resolved.to_yaml()}", highlight=False, soft_wrap=True, markup=False)
        console.print("Everything is in order; nothing was trained or written.", highlight=False)
        return
    seen_otherwise = bool(resolved.data.processor) or resolved.data.exif_transpose
    _report(job, run(job, console, started), console, processor_is_set=seen_otherwise)


def _as_started(
    output: Path, model: Path | None, data: Path | None, val_data: Path | None
) -> tuple[Path, Path, Path | None]:
    """Return model folder, data and validation data of a job to go on with: those given, else its own."""
    from vlm_lora_plugin.checkpoint.data_record import recorded_files, recorded_model
    from vlm_lora_plugin.checkpoint.output import OutputFolder

    job = OutputFolder(output)
    if data is None:
        files = recorded_files(job)
        data, val_data = files["training"], val_data or files.get("validation")
    return recorded_model(job) if model is None else model, data, val_data


def _report(job: TrainJob, result: TrainResult, console: Console, *, processor_is_set: bool) -> None:
    from vlm_lora_plugin.reporting.answers import answer_lines

    losses = f"loss {result.first_loss:.4f} -> {result.last_loss:.4f}" if result.last_loss is not None else ""
    if result.eval_loss is not None:
        losses += f", validation {result.eval_loss:.4f}"
    losses += "".join(f", {name.removeprefix('eval_')} {value:.4f}" for name, value in result.metrics.items())
    size = sum(file.stat().st_size for file in result.adapter.rglob("*")) / 2**20
    console.print(f"{result.steps} steps, {losses}", highlight=False)
    if result.not_moved:
        console.print(result.not_moved, style="yellow", highlight=False, soft_wrap=True, markup=False)
    for text in answer_lines(result.answers) if result.answers is not None else ():
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    for text in result.resources.lines() if result.resources is not None else ():
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    for name, count in result.skipped.items():
        console.print(f"skipped {count} rows of the {name} data", style="yellow", highlight=False)
    for text, path in (("adapter", f"{result.adapter} ({size:.1f} MiB)"), ("results", str(job.output))):
        console.print(f"{text}  {path}", highlight=False, soft_wrap=True, markup=False)
    console.print("Reload it:", highlight=False)
    recipe = f", recipe={str(job.output / 'recipe.yaml')!r}" if processor_is_set else ""
    for line in (
        "from vlm_lora_plugin import load, load_adapter",
        f"model, processor = load({str(job.model)!r}{recipe})",
        f"model = load_adapter(model, {str(result.adapter)!r})",
    ):
        console.print(f"    {line}", highlight=False, soft_wrap=True, markup=False)
