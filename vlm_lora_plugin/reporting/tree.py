"""The tree of components that ``inspect`` and ``train`` print before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from rich.tree import Tree

from vlm_lora_plugin.vocabulary import Kind

if TYPE_CHECKING:
    from vlm_lora_plugin.reporting.summary import ComponentSummary, GroupSummary, ModelSummary

_KINDS: dict[Kind, str] = {"full": "full weights", "builtin_lora": "built-in LoRA", "peft_lora": "PEFT LoRA"}


def count(number: int) -> str:
    """Return a count with a unit that keeps it short: ``127.17 M``."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def size(gib: float) -> str:
    """Return a number of GiB, in MiB when it is small."""
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{gib * 1024:.2f} MiB"


def component_tree(summary: ModelSummary) -> Tree:
    """Return the tree: components, what learns in each and how fast, totals, predicted memory."""
    share = 100 * summary.trainable / summary.parameters
    tree = Tree(
        Text.assemble(
            (f"{summary.family} {summary.model}", "bold"),
            f"\n{count(summary.parameters)} parameters in {summary.dtype}, ",
            (f"{count(summary.trainable)} trainable", "bold green"),
            f" ({share:.2f} %), recipe {summary.recipe}",
        ),
        guide_style="dim",
    )
    for component in summary.components:
        node = tree.add(_component(component))
        for group in component.groups:
            node.add(_group(group))
    memory = summary.memory_gib
    tree.add(
        Text.assemble(
            (f"{'memory':<11}", "bold"),
            f"{size(memory.frozen_weights)} frozen weights + {size(memory.training_state)} weights, gradients and "
            "AdamW state of what learns ",
            ("(predicted; activations come on top)", "italic"),
        )
    )
    return tree


def _component(component: ComponentSummary) -> Text:
    text = Text.assemble((f"{component.component:<11}", "bold"), f"{count(component.parameters):>9}  ")
    if component.trainable:
        text.append(f"{count(component.trainable)} trainable", "green")
    else:
        text.append("frozen", "dim")
    if component.gradient_checkpointing:
        text.append("  gradient checkpointing", "cyan")
    return text


def _group(group: GroupSummary) -> Text:
    decay = f"weight decay {group.weight_decay:g}"
    if group.weight_decay and group.undecayed:
        decay += f" (0 on {group.undecayed} vectors)"
    tensors = "1 tensor" if group.tensors == 1 else f"{group.tensors} tensors"
    return Text.assemble(
        (_KINDS[group.kind], "green"),
        f", {count(group.elements)} in {tensors}, learning rate {group.learning_rate:g}, {decay}",
        (f", group {group.group}", "dim"),
    )
