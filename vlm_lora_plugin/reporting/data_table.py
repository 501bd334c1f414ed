"""The table of a job's data that ``train`` prints before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from vlm_lora_plugin.outside.display import shown

if TYPE_CHECKING:
    from vlm_lora_plugin.data.statistics import DataStatistics
    from vlm_lora_plugin.errors import DataError


def data_table(statistics: Mapping[str, DataStatistics]) -> Table:
    """Return one row for each data set: rows, images, tokens.

    Args:
        statistics: By the name of the set, ``training``.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("data")
    for column in (
        "rows",
        "images",
        "tokens a row",
        "longest row",
        "supervised tokens",
        "truncated rows",
        "skipped rows",
    ):
        table.add_column(column, justify="right")
    for name, data in statistics.items():
        table.add_row(
            name,
            f"{data.rows:,}",
            f"{data.images:,}",
            f"{data.mean_tokens:,.0f}",
            f"{data.longest:,} ({shown(Path(data.longest_origin).name, 60)})",
            f"{data.supervised_tokens:,}",
            f"{data.truncated:,}",
            f"{data.skipped:,}",
        )
    return table


def skipped_lines(skipped: Mapping[str, Sequence[DataError]], rows: Mapping[str, int], *, most: int = 5) -> str:
    """Return which rows of each data set were left out and why; empty when none was.

    Args:
        skipped: By the name of the set, what is wrong with each row that was left out.
        rows: By the name of the set, how many rows are left.
        most: Rows shown of each set.
    """
    lines = []
    for name, problems in skipped.items():
        if problems:
            lines.append(f"skipped {len(problems)} of {rows[name] + len(problems)} rows of the {name} data:")
            lines += [f"  {problem.what}" for problem in problems[:most]]
            lines += [f"  and {len(problems) - most} more; vlm-lora data-check lists them"] * (len(problems) > most)
    return "\n".join(lines)
