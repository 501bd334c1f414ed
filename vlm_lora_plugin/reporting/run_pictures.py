"""Pictures of a run's rates and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SPEEDS = {
    "tokens_per_second": "tokens",
    "supervised_tokens_per_second": "supervised tokens",
    "images_per_second": "images",
}
_MEMORY = {
    "device_memory_peak_gib": ("device, peak", "-"),
    "device_memory_gib": ("device", "--"),
    "host_memory_peak_gib": ("host, peak", "-"),
    "host_memory_gib": ("host", "--"),
}

Lines = Sequence[Mapping[str, Any]]


def draw_rates(log: Lines, picture: Path, *, title: str) -> None:
    """Draw the learning rate of each group, and below it tokens and images a second.

    Args:
        log: Lines of the run's log, see :class:`vlm_lora_plugin.reporting.log.JsonlLog`.
        picture: A PNG file to write.
        title: What was trained, and by which recipe.
    """
    figure = Figure(figsize=(8, 7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    learning, speed = figure.subplots(2, 1, sharex=True)
    learning.set_title(title, fontsize=10)
    rates = [(line["step"], line["learning_rate"]) for line in log if "learning_rate" in line]
    for group in dict.fromkeys(name for _, by_group in rates for name in by_group):
        _line(learning, [(step, by_group[group]) for step, by_group in rates if group in by_group], group, "-")
    _finish(learning, "learning rate")
    for key, label in _SPEEDS.items():
        points = _points(log, key)
        if any(value > 0 for _, value in points):
            _line(speed, points, label, "-")
            speed.set_yscale("log")  # images and tokens lie orders of magnitude apart
    _finish(speed, "per second")
    speed.set_xlabel("optimizer step")
    figure.savefig(picture)


def draw_memory(log: Lines, picture: Path, *, title: str) -> None:
    """Draw current and peak memory of the device, where there is one, and of the process.

    Args:
        log: Lines of the run's log.
        picture: A PNG file to write.
        title: What was trained, and by which recipe.
    """
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    for key, (label, style) in _MEMORY.items():
        _line(axes, _points(log, key), label, style)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer step")
    _finish(axes, "memory (GiB)")
    figure.savefig(picture)


def _points(log: Lines, key: str) -> list[tuple[int, float]]:
    return [(line["step"], line[key]) for line in log if line.get(key) is not None]


def _line(axes: Axes, points: Sequence[tuple[int, float]], label: str, style: str) -> None:
    if points:
        shape = style if len(points) > 1 else "o"
        axes.plot(*zip(*points, strict=True), shape, label=label, markersize=4, linewidth=1.2)


def _finish(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
