"""The table of a job's data that ``train`` prints before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from vlm_lora_plugin.data.preflight import DataStatistics


def data_table(statistics: Mapping[str, DataStatistics]) -> Table:
    """Return one row for each data set: rows, images, tokens.

    Args:
        statistics: By the name of the set, ``training``.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("data")
    for column in ("rows", "images", "tokens a row", "longest row", "supervised tokens", "truncated rows"):
        table.add_column(column, justify="right")
    for name, data in statistics.items():
        table.add_row(
            name,
            f"{data.rows:,}",
            f"{data.images:,}",
            f"{data.mean_tokens:,.0f}",
            f"{data.longest:,}",
            f"{data.supervised_tokens:,}",
            f"{data.truncated:,}",
        )
    return table
