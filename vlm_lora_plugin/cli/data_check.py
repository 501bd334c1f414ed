"""``vlm-lora data-check``: what a data file holds for a model, before anything is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm_lora_plugin.cli.options import (
    BadSampleOption,
    CheckImagesOption,
    JsonOption,
    OutsideImagesOption,
    PresetOption,
    RecipeOption,
    SetOption,
    TracebackOption,
    data_assignments,
    overrides,
)
from vlm_lora_plugin.cli.picture_option import refuse_unwritable

if TYPE_CHECKING:
    from rich.console import Console

    from vlm_lora_plugin.job.data_check import DataReport

BAD_ROWS = 2
"""Exit code when there are rows that ``train`` would stop at."""

_MOST_FIXES = 5


def data_check(
    model: Annotated[Path, typer.Argument(help="A model folder; its weights are not read.")],
    data: Annotated[Path, typer.Option("--data", "-d", help="The data, JSONL or JSON.")],
    picture: Annotated[Path | None, typer.Option("--output", "-o", help="Write histograms here, as PNG.")] = None,
    recipe: RecipeOption = None,
    preset: PresetOption = None,
    assignments: SetOption = None,
    on_bad_sample: BadSampleOption = None,
    allow_outside_images: OutsideImagesOption = False,
    check_images: CheckImagesOption = True,
    as_json: JsonOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Report lengths, supervised tokens, image sizes and bad rows of a data file. Trains nothing."""
    import json
    from functools import partial

    from vlm_lora_plugin.job.train_job import recognise
    from vlm_lora_plugin.reporting.console import make_console

    settings = [*(assignments or ()), *data_assignments(on_bad_sample, allow_outside_images)]
    family, resolved = recognise(model, recipe, overrides(settings, preset))
    if picture is not None:
        refuse_unwritable(picture)
    from vlm_lora_plugin.job.data_check import check_data  # imports torch: after what can be refused without it
    from vlm_lora_plugin.reporting.checking import checking_bar

    checking = partial(checking_bar, make_console(stderr=True))
    report = check_data(model, data, family, resolved, decode=check_images, checking=checking)
    if as_json:
        typer.echo(json.dumps(report.document(), indent=2))
    else:
        _show(report, make_console())
    if picture is not None:
        from vlm_lora_plugin.reporting.data_report import draw_report

        draw_report(report, picture)
    if report.bad and (resolved.data.on_bad_sample == "error" or not report.survey.tokens):
        raise typer.Exit(BAD_ROWS)


def _show(report: DataReport, console: Console) -> None:
    from vlm_lora_plugin.outside.display import shown
    from vlm_lora_plugin.reporting.data_report import report_table

    console.print(report_table(report))
    for line in report.peculiar():
        console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
    passed = report.survey.passed_over
    if passed:
        found = ", ".join(f"{shown(key, 60)} ({count:,} rows)" for key, count in sorted(passed.items()))
        console.print(f"keys passed over, which change nothing: {found}", highlight=False, markup=False, soft_wrap=True)
    for row in report.bad:
        console.print(f"{row.row}: {row.problem}", style="red", highlight=False, markup=False, soft_wrap=True)
    if report.bad:
        console.print(f"{len(report.bad)} of {report.survey.rows} rows cannot be used", style="bold", highlight=False)
        fixes = list(dict.fromkeys(row.fix for row in report.bad if row.fix))
        for fix in fixes[:_MOST_FIXES]:
            console.print(f"- {fix}", highlight=False, markup=False, soft_wrap=True)
