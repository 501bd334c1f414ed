"""Pictures of a run's rates and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_lora_plugin.reporting.curves import draw_curves, finish, from_zero, new_figure, save, set_title

_SPEEDS = {
    "tokens_per_second": "tokens",
    "supervised_tokens_per_second": "supervised tokens",
    "images_per_second": "images",
}
_MEMORY = {
    "device_memory_peak_gib": "device, peak",
    "device_memory_gib": "device",
    "host_memory_peak_gib": "host, peak",
    "host_memory_gib": "host",
}
_DASHED = {"device": "--", "host": "--"}

Lines = Sequence[Mapping[str, Any]]


def draw_rates(log: Lines, picture: Path, *, title: str) -> None:
    """Draw the learning rate of each group, and below it tokens and images a second.

    Args:
        log: Lines of the run's log, see :class:`vlm_lora_plugin.reporting.log.JsonlLog`.
        picture: A PNG file to write.
        title: What was trained, and by which recipe.
    """
    figure = new_figure(8, 7)
    learning, speed = figure.subplots(2, 1, sharex=True)
    set_title(learning, title)
    rates = [(line["step"], line["learning_rate"]) for line in log if "learning_rate" in line]
    groups = dict.fromkeys(name for _, by_group in rates for name in by_group)
    draw_curves(learning, {group: [(step, own[group]) for step, own in rates if group in own] for group in groups})
    from_zero(learning)
    finish(learning, "learning rate")
    found = {label: _points(log, key) for key, label in _SPEEDS.items()}
    speeds = {label: points for label, points in found.items() if any(value > 0 for _, value in points)}
    draw_curves(speed, speeds)
    if speeds:
        speed.set_yscale("log")  # images and tokens lie orders of magnitude apart
    finish(speed, "per second")
    speed.set_xlabel("optimizer step")
    save(figure, picture)


def draw_memory(log: Lines, picture: Path, *, title: str) -> None:
    """Draw current and peak memory of the device, where there is one, and of the process.

    Args:
        log: Lines of the run's log.
        picture: A PNG file to write.
        title: What was trained, and by which recipe.
    """
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    set_title(axes, title)
    draw_curves(axes, {label: _points(log, key) for key, label in _MEMORY.items()}, _DASHED)
    from_zero(axes)
    axes.set_xlabel("optimizer step")
    finish(axes, "memory (GiB)")
    save(figure, picture)


def _points(log: Lines, key: str) -> list[tuple[int, float]]:
    return [(line["step"], line[key]) for line in log if line.get(key) is not None]
