"""What a comparison says, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vlm_lora_plugin.errors import listed
from vlm_lora_plugin.parity.reading import Run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vlm_lora_plugin.parity.both_runs import Outcome

TITLES = {"trainer": "transformers.Trainer", "swift": "ms-swift"}
COLUMNS = {
    "loss": "loss",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "eval_loss": "evaluation loss",
}
_SHOWN = 40  # steps in the table: the first and last half of it


def document(outcome: Outcome) -> dict[str, Any]:
    """Return a comparison as plain data, ready for JSON; floats are written with all their digits."""
    difference = outcome.difference
    return {
        "equal": difference is None,
        "recipe": outcome.recipe.origin,
        "dtype": outcome.job.dtype,
        "processes": outcome.job.processes,
        **{run.framework: _run(run) for run in outcome.runs},
        "first_difference": None
        if difference is None
        else {
            "kind": difference.kind.value,
            "where": difference.where,
            "trainer": difference.left,
            "swift": difference.right,
            "trainer_rows": difference.rows[0],
            "swift_rows": difference.rows[1],
            "likely_cause": difference.cause,
        },
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "trainable_names": list(run.start["trainables"]),
        "trainable_digest": run.start["digest"],
        "initial_digest": run.initial_digest(),
        "steps": [{"step": step, **values} for step, values in run.steps().items()],
        "adapter_digest": run.saved_digest() if run.saved else None,
        "checkpoint": None if run.checkpoint is None else str(run.checkpoint),
    }


def show(outcome: Outcome, console: Console) -> None:
    """Print a comparison side by side, and the first difference with its likely cause."""
    console.print(_facts(outcome))
    console.print(_steps(outcome))
    console.print(_verdict(outcome), soft_wrap=True)


def _facts(outcome: Outcome) -> Table:
    left, right = outcome.runs
    table = Table(title=f"{outcome.job.model.name}, recipe {outcome.recipe.origin}, {outcome.job.dtype}")
    table.add_column("")
    for run in outcome.runs:
        table.add_column(TITLES[run.framework])
    table.add_column("")
    rows = [
        ("trainable tensors", str(len(left.start["trainables"])), str(len(right.start["trainables"]))),
        ("names", *(listed(run.start["trainables"], most=1) for run in outcome.runs)),
        ("digest of names", *(run.start["digest"][:16] for run in outcome.runs)),
        ("first values", *(run.initial_digest() for run in outcome.runs)),
        ("saved adapter", *(run.saved_digest() if run.saved else "none" for run in outcome.runs)),
    ]
    for name, one, other in rows:
        table.add_row(name, one, other, _mark(one == other))
    return table


def _steps(outcome: Outcome) -> RenderableType:
    left, right = (run.steps() for run in outcome.runs)
    columns = [key for key in COLUMNS if any(key in values for values in (*left.values(), *right.values()))]
    table = Table(title="step by step: transformers.Trainer | ms-swift")
    table.add_column("step", justify="right")
    for key in columns:
        table.add_column(COLUMNS[key], justify="right")
    table.add_column("")
    steps = sorted({*left, *right})
    hidden = len(steps) - _SHOWN
    for index, step in enumerate(steps):
        if hidden > 0 and _SHOWN // 2 <= index < len(steps) - _SHOWN // 2:
            continue
        one, other = left.get(step, {}), right.get(step, {})
        cells = [_pair(one.get(key), other.get(key)) for key in columns]
        table.add_row(str(step), *cells, _mark(one == other))
    if hidden <= 0:
        return table
    return Group(table, Text(f"{hidden} steps in the middle are not shown; --json has them all", style="dim"))


def _pair(one: float | None, other: float | None) -> Text:
    if one is None and other is None:
        return Text("")
    texts = ["-" if value is None else _digits(value, other if value is one else one) for value in (one, other)]
    return Text(" | ".join(texts), style="" if one == other else "red")


def _digits(value: float, beside: float | None) -> str:
    """Return six digits, or all where two numbers look alike and are not."""
    short = f"{value:.6g}"
    return repr(value) if beside is not None and value != beside and short == f"{beside:.6g}" else short


def _verdict(outcome: Outcome) -> Text:
    difference = outcome.difference
    if difference is None:
        return Text(
            "equal to the last bit: names, first values, rows, losses, gradients, weights, saved files", "green"
        )
    text = Text(f"first difference: {difference.kind.value}", "bold red")
    details: Mapping[str, str] = {
        "where": difference.where,
        TITLES["trainer"]: ", ".join(difference.rows[0]) or difference.left,
        TITLES["swift"]: ", ".join(difference.rows[1]) or difference.right,
        "likely cause": difference.cause,
    }
    for name, value in details.items():
        if value:
            text.append(f"\n  {name}: {value}", "not bold default")
    return text


def _mark(equal: bool) -> Text:
    return Text("=", "green") if equal else Text("differs", "bold red")
