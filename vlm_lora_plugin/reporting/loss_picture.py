"""The picture of a run's loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_lora_plugin.reporting.curves import draw_curves, finish, from_zero, new_figure, save, set_title

_LOSSES = {"loss": "training", "eval_loss": "validation"}


def draw_loss(log: Sequence[Mapping[str, Any]], picture: Path, *, title: str) -> None:
    """Draw training and evaluation loss over the optimizer's steps.

    Args:
        log: Lines of the run's log, see :class:`vlm_lora_plugin.reporting.log.JsonlLog`.
        picture: A PNG file to write.
        title: What was trained, and by which recipe.
    """
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    curves = {
        label: [(line["step"], line[key]) for line in log if line.get(key) is not None]
        for key, label in _LOSSES.items()
    }
    draw_curves(axes, curves, {"validation": "--"})
    set_title(axes, title)
    axes.set_xlabel("optimizer step")
    from_zero(axes)
    finish(axes, "loss (nats per supervised token)")
    save(figure, picture)
