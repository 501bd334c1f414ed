"""A checked data file, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from rich.console import Group
from rich.table import Table
from rich.text import Text

from vlm_lora_plugin.outside.display import shown
from vlm_lora_plugin.reporting.curves import new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vlm_lora_plugin.job.data_check import DataReport

TOKENS, IMAGE_SIZE = "tokens a row", "image size (million pixels)"
COLOUR = "#3b6ea5"
_BINS = 40
_LINES = (
    ("tokens", "tokens a row"),
    ("supervised_tokens", "supervised tokens a row"),
    ("image_width", "image width (pixels)"),
    ("image_height", "image height (pixels)"),
)


def report_table(report: DataReport) -> Group:
    """Return how much is usable, then lengths and image sizes: smallest, median, 95 %, largest, mean and total."""
    document = report.document()
    columns = ("min", "median", "p95", "max", "mean")
    title = (
        f"{shown(report.data)}: {document['usable_rows']:,} of {document['rows']:,} rows usable, "
        f"{document['images']:,} images, {document['truncated_rows']:,} rows cut to {report.max_length:,} tokens"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in (*columns, "total"):
        table.add_column(column, justify="right")
    for key, name in _LINES:
        values = document[key]
        if values is not None:
            total = f"{values['total']:,.0f}" if key.endswith("tokens") else ""
            table.add_row(name, *(f"{values[column]:,.0f}" for column in columns), total)
    return Group(Text(title), table) if table.rows else Group(Text(title))


def draw_report(report: DataReport, picture: Path) -> None:
    """Draw histograms of tokens, supervised tokens and image sizes.

    Args:
        report: What was found.
        picture: A file to write; its ending says in which format.
    """
    found = report.survey
    megapixels = np.asarray(found.widths, dtype=float) * np.asarray(found.heights, dtype=float) / 1e6
    panels: list[tuple[str, Sequence[float] | np.ndarray]] = [
        (TOKENS, found.tokens),
        ("supervised tokens a row", found.supervised),
        (IMAGE_SIZE, megapixels),
    ]
    figure = new_figure(12, 3.6)
    for axes, (name, values) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _histogram(axes, np.asarray(values, dtype=float), whole=name != IMAGE_SIZE)
        axes.set_xlabel(name)
        if name == TOKENS:
            axes.set_ylabel("count")
            _mark_limit(axes, report.max_length)
    title = f"{shown(report.data.name, 80)}: {len(found.tokens):,} of {found.rows:,} rows usable"
    figure.suptitle(title, fontsize=10, parse_math=False)
    save(figure, picture)


def _histogram(axes: Axes, values: np.ndarray, *, whole: bool) -> None:
    """Draw a histogram over the range of the values alone; whole numbers get bins of whole width."""
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    if not len(values):
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    bins: int | list[float] = _BINS
    if whole:
        low, high = values.min(), values.max()
        width = max(1, int(np.ceil((high - low + 1) / _BINS)))
        bins = (np.arange(low, high + width + 1, width) - 0.5).tolist()
        axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))
    axes.hist(values, bins=bins, color=COLOUR)
    axes.yaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))


def _mark_limit(axes: Axes, limit: int) -> None:
    """Draw ``data.max_length`` where it lies in the picture or near it; elsewhere say how far it is."""
    low, high = axes.get_xlim()
    red: dict[str, Any] = {"color": "#c0392b", "linestyle": "--", "linewidth": 1}
    if low <= limit <= high + 0.25 * (high - low):
        axes.axvline(limit, label="data.max_length", **red)
    else:  # a line there would squeeze the rows into nothing
        axes.plot([], [], label=f"data.max_length {limit:,}, outside", **red)
    axes.legend(fontsize=8)
