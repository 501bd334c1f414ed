"""The picture of a comparison: both losses, and what lies between them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vlm_lora_plugin.parity.report import TITLES

if TYPE_CHECKING:
    from vlm_lora_plugin.parity.both_runs import Outcome

_KEYS = {"loss": "loss (nats per supervised token)", "grad_norm": "gradient norm"}


def draw(outcome: Outcome, picture: Path) -> None:
    """Draw loss and gradient norm of both frameworks, and below each the difference.

    Args:
        outcome: What was compared.
        picture: A PNG file to write.
    """
    figure = Figure(figsize=(10, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{outcome.job.model.name}, recipe {outcome.recipe.origin}, {outcome.job.dtype}", fontsize=10)
    grid = figure.subplots(2, len(_KEYS), sharex=True, height_ratios=(2, 1))
    steps = [run.steps() for run in outcome.runs]
    for column, (key, label) in enumerate(_KEYS.items()):
        top, bottom = grid[0][column], grid[1][column]
        for run, values, style in zip(outcome.runs, steps, ("-o", "--x"), strict=True):
            points = [(step, line[key]) for step, line in values.items() if key in line]
            if points:
                top.plot(*zip(*points, strict=True), style, label=TITLES[run.framework], markersize=4, linewidth=1.2)
        common = [step for step, line in steps[0].items() if key in line and key in steps[1].get(step, {})]
        gaps = [steps[1][step][key] - steps[0][step][key] for step in common]
        bottom.plot(common, gaps, "-o", color="black", markersize=3, linewidth=1)
        bottom.axhline(0, color="green", linewidth=0.8)
        top.set_ylabel(label)
        bottom.set_ylabel("ms-swift - Trainer")
        bottom.set_xlabel("optimizer step")
        for axes in (top, bottom):
            axes.grid(alpha=0.3)
        if top.lines:
            top.legend()
    figure.savefig(picture)
