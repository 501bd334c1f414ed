"""The bar that shows how far a check of the data is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def checking_bar(console: Console, name: str, rows: int) -> Iterator[Callable[[int], None]]:
    """Show a bar, on a terminal only, until the ``with`` ends; it is gone afterwards.

    Args:
        console: Where.
        name: The data set's name.
        rows: How many rows there are.

    Yields:
        A function that is told how many rows are done.
    """
    columns = (
        TextColumn("checking {task.description} data", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=rows)
        yield lambda done: bar.update(task, completed=done)
