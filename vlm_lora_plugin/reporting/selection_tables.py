"""What ``inspect --names`` and ``inspect --rules`` show: parameters one by one, and what became of each rule."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from vlm_lora_plugin.errors import listed
from vlm_lora_plugin.selection.matching import describe

if TYPE_CHECKING:
    from vlm_lora_plugin.selection.trace import RuleTrace, SelectionTrace
    from vlm_lora_plugin.selection.trainables import TrainableSet


def names_document(trainables: TrainableSet) -> list[dict[str, Any]]:
    """Return every parameter that learns as plain data, in the model's order."""
    return [
        {
            "name": entry.name,
            "shape": list(entry.shape),
            "component": entry.component,
            "means": entry.means,
            "kind": entry.kind,
            "group": entry.group,
            "learning_rate": entry.learning_rate,
            "weight_decay": entry.weight_decay,
        }
        for entry in trainables.parameters
    ]


def names_table(trainables: TrainableSet) -> Table:
    """Return every parameter that learns, one a line, in the model's order."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("parameter", overflow="fold", min_width=40)
    for column in ("shape", "means", "group", "learning rate", "weight decay"):
        table.add_column(
            column, no_wrap=True, justify="right" if column in ("learning rate", "weight decay") else "left"
        )
    for entry in trainables.parameters:
        shape = " x ".join(map(str, entry.shape)) or "scalar"
        table.add_row(
            entry.name, shape, entry.means, entry.group, f"{entry.learning_rate:g}", f"{entry.weight_decay:g}"
        )
    return table


def rules_document(selection: SelectionTrace) -> list[dict[str, Any]]:
    """Return each rule as plain data: what it matched, what it lost to which later rule, what learns by it."""
    return [
        {
            "index": index,
            "rule": trace.rule.model_dump(mode="json", exclude_defaults=True),
            "from": _source(trace),
            "matched": list(trace.matched),
            "lost": [{"name": name, "to": winner} for name, winner in trace.lost],
            "trains": list(trace.trains),
        }
        for index, trace in enumerate(selection.rules)
    ]


def rules_tree(selection: SelectionTrace) -> Tree:
    """Return the rules in order, numbered from 0, each with counts and the first names."""
    tree = Tree(Text("Rules in order; of those that match a parameter the last one decides", style="bold"))
    for index, trace in enumerate(selection.rules):
        node = tree.add(
            Text.assemble(f"{index}  ", (describe(trace.rule), "bold"), (f"  from the {_source(trace)}", "dim"))
        )
        node.add(Text(f"matched {listed(trace.matched, most=3) if trace.matched else 'nothing'}"))
        for winner, count in sorted(Counter(winner for _, winner in trace.lost).items()):
            lost = [name for name, other in trace.lost if other == winner]
            node.add(Text(f"lost {count} to rule {winner}: {listed(lost, most=3)}", style="yellow"))
        trains = f"trains {listed(trace.trains, most=3)}" if trace.trains else "trains nothing"
        node.add(Text(trains, style="green" if trace.trains else "dim"))
    return tree


def _source(trace: RuleTrace) -> str:
    return "recipe" if trace.of_recipe else "adapter or a policy"
