"""Curves over a run's steps, each of which can be seen: flat ones, equal ones, and those of a few steps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[int, float]]
"""Step and value, in the order of the steps."""

SAME = 0.005
"""Share of the highest value below which two curves lie on each other: about the width of a line."""

_FEW = 30  # points of a curve up to which each is marked
_DASH = 5.0  # times the width of a line


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, which :func:`save` can write."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, picture: Path) -> None:
    """Write a picture; its ending says in which format. A character that the font lacks is drawn as a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(picture)


def set_title(axes: Axes, text: str) -> None:
    """Write a title as it stands: a folder's name may hold what elsewhere would be a formula."""
    axes.set_title(text, fontsize=10, parse_math=False)


def draw_curves(axes: Axes, curves: Mapping[str, Points], styles: Mapping[str, str] | None = None) -> None:
    """Draw curves, and make room for each on the axis of the steps.

    Curves that lie on each other, on the whole or in part, are drawn as dashes that alternate, so that each shows.
    The axis has whole steps only, and every step of a short run is marked.

    Args:
        axes: Where.
        curves: Label -> points; an empty curve is left out.
        styles: Label -> matplotlib's line style, for curves that are to differ in it; a solid line otherwise.
    """
    drawn = {label: points for label, points in curves.items() if points}
    groups = overlapping(drawn)
    for label, points in drawn.items():
        together = next(group for group in groups if label in group)
        place, number = together.index(label), len(together)
        (line,) = axes.plot(
            *zip(*points, strict=True),
            linestyle=(styles or {}).get(label, "-"),
            label=f" {label}" if label.startswith("_") else label,  # matplotlib leaves such labels out
            linewidth=1.4,
            marker="o" if len(points) <= _FEW else "",
            markersize=4 + 3 * (number - 1 - place),  # the last is drawn on top
        )
        if number > 1:
            line.set_linestyle((_DASH * place, (_DASH, _DASH * (number - 1))))
    _whole_steps(axes, [step for points in drawn.values() for step, _ in points])


def overlapping(curves: Mapping[str, Points]) -> list[list[str]]:
    """Return the labels of all curves, those together that share a part of their way, in their order."""
    top = max((abs(value) for points in curves.values() for _, value in points), default=0.0)
    groups: list[list[str]] = []
    for label, points in curves.items():
        touching = [group for group in groups if any(_share_a_part(points, curves[other], top) for other in group)]
        merged = [other for group in touching for other in group] + [label]
        groups = [group for group in groups if group not in touching] + [merged]
    return groups


def _share_a_part(one: Points, other: Points, top: float) -> bool:
    """Return whether two curves are the same at two steps in a row, or at all where either has one step alone."""
    known = dict(other)
    same = [step in known and abs(value - known[step]) <= SAME * top for step, value in one]
    return any(a and b for a, b in pairwise(same)) or (min(len(one), len(other)) == 1 and any(same))


def _whole_steps(axes: Axes, steps: Sequence[int]) -> None:
    if not steps:
        return
    first, last = min(steps), max(steps)
    margin = max(0.05 * (last - first), 0.5)
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))


def from_zero(axes: Axes) -> None:
    """Let the axis of the values begin at zero, with room above and below, so that no curve lies in the frame."""
    values = [float(value) for line in axes.lines for value in line.get_ydata()]  # type: ignore[union-attr, arg-type]
    top = max(values, default=1.0) or 1.0
    low = min(values, default=0.0)
    axes.set_ylim(min(0.0, low) - 0.04 * abs(top), top + 0.08 * abs(top))


def finish(axes: Axes, label: str) -> None:
    """Name the axis of the values, and beside the panel, where they cover nothing, the curves."""
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if axes.lines:
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
