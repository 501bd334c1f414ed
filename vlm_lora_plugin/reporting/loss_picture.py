"""The picture of a run's loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_loss(log: Sequence[Mapping[str, Any]], picture: Path, *, title: str) -> None:
    """Draw training and evaluation loss over the optimizer's steps.

    Args:
        log: Lines of the run's log, see :class:`vlm_lora_plugin.reporting.log.JsonlLog`.
        picture: A PNG file to write.
        title: What was trained, and by which recipe.
    """
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o--")):
        points = [(line["step"], line[key]) for line in log if line.get(key) is not None]
        if points:
            shape = style if len(points) > 1 else "o"
            axes.plot(*zip(*points, strict=True), shape, label=label, markersize=4, linewidth=1.2)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per supervised token)")
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(picture)
