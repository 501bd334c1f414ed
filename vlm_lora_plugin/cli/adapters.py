"""``vlm-lora adapters``: which adapters and policies are installed, and what became of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from vlm_lora_plugin.cli.options import JsonOption, TracebackOption

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.plugins.records import AdapterRecord


def adapters(ctx: typer.Context, as_json: JsonOption = False, traceback: TracebackOption = False) -> None:
    """List the installed adapters and policies, the broken ones with the reason."""
    import json

    from vlm_lora_plugin.cli.failure import wants_traceback
    from vlm_lora_plugin.plugins.manager import get_manager
    from vlm_lora_plugin.reporting.console import make_console

    manager = get_manager()
    records = manager.records()
    families = manager.working_families()
    if as_json:
        typer.echo(json.dumps([_document(record, families) for record in records], indent=2))
        return
    console = make_console()
    console.print(_table(records, families))
    for record in records:
        if record.error and wants_traceback(ctx):
            console.print(f"\n{record.name} of {record.distribution}:\n{record.error}", markup=False, highlight=False)


def _document(record: AdapterRecord, families: Mapping[str, Family]) -> dict[str, Any]:
    family = None if record.policy or record.error else families.get(record.name)
    return {
        "name": record.name,
        "kind": "policy" if record.policy else "adapter",
        "distribution": record.distribution,
        "value": record.value,
        "builtin": record.builtin,
        "title": family.title if family else None,
        "model_types": list(family.model_types) if family else [],
        "presets": list(family.presets) if family else [],
        "error": record.error,
    }


def _table(records: tuple[AdapterRecord, ...], families: Mapping[str, Family]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "kind", "distribution", "model types", "presets"):
        table.add_column(column)
    table.add_column("state", overflow="fold")
    for record in records:
        document = _document(record, families)
        reason = record.error.strip().splitlines()[-1] if record.error else ""
        table.add_row(
            record.name,
            document["kind"],
            record.distribution,
            ", ".join(document["model_types"]),
            ", ".join(document["presets"]),
            Text(f"broken: {reason}", style="red") if reason else Text("works", style="green"),
        )
    return table
