"""``vlm-lora parity``: the same job in the Trainer and in ms-swift, compared to the last bit."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm_lora_plugin.cli.options import (
    Dtype,
    DtypeOption,
    JsonOption,
    PresetOption,
    RecipeOption,
    SetOption,
    TracebackOption,
    name_of,
    overrides,
)

if TYPE_CHECKING:
    from vlm_lora_plugin.parity.both_runs import Outcome
    from vlm_lora_plugin.parity.parity_job import ParityJob

OUTPUT = Path("runs/parity")


def parity(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A model folder; with --demo, the name of a family.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", "-d", help="Training data, JSONL or JSON.")] = None,
    val_data: Annotated[Path | None, typer.Option("--val-data", help="Data to evaluate on, same form.")] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for records, checkpoints and the picture.")
    ] = OUTPUT,
    recipe: RecipeOption = None,
    preset: PresetOption = None,
    assignments: SetOption = None,
    dtype: DtypeOption = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Stop after so many steps; the recipe's length.")
    ] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Processes of each framework (gloo).")] = 1,
    demo: Annotated[bool, typer.Option("--demo", help="Compare on a tiny model and data made for it.")] = False,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="List the defaults that differ, and what the recipe sets; train nothing.")
    ] = False,
    as_json: JsonOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Train the same in transformers.Trainer and in ms-swift; exit code 1 where they differ in a single bit."""
    if defaults:
        _defaults(as_json)
        return
    if demo and (data is not None or val_data is not None):
        raise typer.BadParameter("brings its own data", param_hint="--demo")
    if not demo and (model is None or data is None):
        missing = [name for name, value in (("MODEL", model), ("--data", data)) if value is None]
        raise typer.BadParameter("needed, unless --demo is given", param_hint=" and ".join(missing))
    from vlm_lora_plugin.frameworks.swift.versions import check_version
    from vlm_lora_plugin.parity.parity_job import ParityJob

    check_version()
    laid_over = overrides(assignments, preset, steps)
    kind = name_of(dtype) or Dtype.fp32.value
    if demo:
        from vlm_lora_plugin.parity.demo import with_demo_length, write_demo

        os.environ.setdefault("OMP_NUM_THREADS", "1")  # a second thread gains nothing on matrices this small
        folder, rows, validation = write_demo(output / "demo", model)
        job = ParityJob(folder, rows, output, validation, recipe, with_demo_length(laid_over), kind, processes)
    else:
        job = ParityJob(Path(str(model)), Path(str(data)), output, val_data, recipe, laid_over, kind, processes)
    job.check()
    from vlm_lora_plugin.parity.both_runs import run  # imports torch: after what can be refused without it

    with _aside(as_json):
        outcome = run(job)
    _report(outcome, job, as_json=as_json)


def _aside(as_json: bool) -> AbstractContextManager[object]:
    """Send what libraries print to standard error where standard output is for JSON alone."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def _report(outcome: Outcome, job: ParityJob, *, as_json: bool) -> None:
    import json

    from vlm_lora_plugin.parity.picture import draw
    from vlm_lora_plugin.parity.report import document, show
    from vlm_lora_plugin.reporting.console import make_console

    picture = job.output / "parity.png"
    draw(outcome, picture)
    if as_json:
        typer.echo(json.dumps(document(outcome), indent=2))
    else:
        console = make_console()
        show(outcome, console)
        console.print(f"picture {picture}, records and checkpoints in {job.output}", highlight=False, soft_wrap=True)
    if outcome.difference is not None:
        raise typer.Exit(1)


def _defaults(as_json: bool) -> None:
    import json

    from vlm_lora_plugin.parity.defaults import differing_defaults, table
    from vlm_lora_plugin.reporting.console import make_console

    with _aside(as_json):
        found = differing_defaults()
    if as_json:
        typer.echo(json.dumps([vars(line) for line in found], indent=2))
    else:
        make_console().print(table(found))
