"""The picture of a comparison: both losses, and what lies between them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lora_plugin.parity.report import TITLES
from vlm_lora_plugin.reporting.curves import draw_curves, finish, new_figure, save

if TYPE_CHECKING:
    from vlm_lora_plugin.parity.both_runs import Outcome

_KEYS = {"loss": "loss (nats per supervised token)", "grad_norm": "gradient norm"}


def draw(outcome: Outcome, picture: Path) -> None:
    """Draw loss and gradient norm of both frameworks, and below each the difference.

    Args:
        outcome: What was compared.
        picture: A PNG file to write.
    """
    figure = new_figure(10, 6)
    title = f"{outcome.job.model.name}, recipe {outcome.recipe.origin}, {outcome.job.dtype}"
    figure.suptitle(title, fontsize=10, parse_math=False)
    grid = figure.subplots(2, len(_KEYS), sharex=True, height_ratios=(2, 1))
    steps = [run.steps() for run in outcome.runs]
    for column, (key, label) in enumerate(_KEYS.items()):
        top, bottom = grid[0][column], grid[1][column]
        common = [step for step, line in steps[0].items() if key in line and key in steps[1].get(step, {})]
        gaps = [steps[1][step][key] - steps[0][step][key] for step in common]
        bottom.plot(common, gaps, "-o", color="black", markersize=3, linewidth=1)
        bottom.axhline(0, color="green", linewidth=0.8, zorder=0)  # below a difference of nothing
        curves = {
            TITLES[run.framework]: [(step, line[key]) for step, line in values.items() if key in line]
            for run, values in zip(outcome.runs, steps, strict=True)
        }
        draw_curves(top, curves)  # both panels share the axis of the steps
        finish(top, label)
        bottom.grid(alpha=0.3)
        bottom.set_ylabel("ms-swift - Trainer")
        bottom.set_xlabel("optimizer step")
    save(figure, picture)
