"""A checked data file, as a table and as a picture."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from vlm_lora_plugin.outside.display import shown

if TYPE_CHECKING:
    from vlm_lora_plugin.job.data_check import DataReport

_BINS = 40
_LINES = (
    ("tokens", "tokens a row"),
    ("supervised_tokens", "supervised tokens a row"),
    ("image_width", "image width (pixels)"),
    ("image_height", "image height (pixels)"),
)


def report_table(report: DataReport) -> Table:
    """Return lengths and image sizes: smallest, median, 95 %, largest, mean, and the total of tokens."""
    document = report.document()
    columns = ("min", "median", "p95", "max", "mean")
    title = (
        f"{shown(report.data)}: {document['usable_rows']:,} of {document['rows']:,} rows usable, "
        f"{document['images']:,} images, {document['truncated_rows']:,} rows cut to {report.max_length:,} tokens"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in (*columns, "total"):
        table.add_column(column, justify="right")
    for key, name in _LINES:
        values = document[key]
        if values is not None:
            total = f"{values['total']:,.0f}" if key.endswith("tokens") else ""
            table.add_row(name, *(f"{values[column]:,.0f}" for column in columns), total)
    return table


def draw_report(report: DataReport, picture: Path) -> None:
    """Draw histograms of tokens, supervised tokens and image sizes.

    Args:
        report: What was found.
        picture: A file to write; its ending says in which format.
    """
    found = report.survey
    megapixels = np.asarray(found.widths, dtype=float) * np.asarray(found.heights, dtype=float) / 1e6
    panels: list[tuple[str, Sequence[float] | np.ndarray]] = [
        ("tokens a row", found.tokens),
        ("supervised tokens a row", found.supervised),
        ("image size (million pixels)", megapixels),
    ]
    figure = Figure(figsize=(12, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, values) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.hist(values, bins=_BINS, color="#3b6ea5")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
        if name == "tokens a row":
            axes.set_ylabel("count")
            axes.axvline(report.max_length, color="#c0392b", linestyle="--", linewidth=1, label="data.max_length")
            axes.legend(fontsize=8)
    title = f"{shown(report.data.name, 80)}: {len(found.tokens):,} of {found.rows:,} rows usable"
    figure.suptitle(title, fontsize=10, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a name in Chinese: boxes are shown
        figure.savefig(picture)
