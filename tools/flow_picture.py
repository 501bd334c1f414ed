"""Draws docs/images/flow.svg, the README's picture: ``python tools/flow_picture.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

PICTURE = Path(__file__).parents[1] / "docs/images/flow.svg"

INPUT, OURS, LOOP, RESULT = "#e8eef7", "#fdf1dc", "#e9e6f5", "#e2f2e5"
BOXES = {
    "recipe": (0.0, 8.1, 4.4, INPUT, "recipe", "YAML, command line or Python"),
    "model": (5.0, 8.1, 4.4, INPUT, "model folder", "recognised by content, no remote code"),
    "data": (10.0, 8.1, 4.4, INPUT, "images + JSONL", "conversations"),
    "select": (0.0, 6.2, 9.4, OURS, "select_trainable", "ordered rules -> exact parameter names, shown beforehand"),
    "process": (10.0, 6.2, 4.4, OURS, "processor", "encode, mask labels, collate"),
    "prepare": (0.0, 4.3, 9.4, OURS, "prepare", "PEFT LoRA, init keyed by name, fp32 trainables, manifest with digest"),
    "wrap": (0.0, 2.4, 9.4, OURS, "wrap_forward", "reversible patches: same result, less memory"),
    "loop": (10.0, 2.4, 4.4, LOOP, "Trainer", "transformers, unmodified"),
    "adapter": (5.0, 0.5, 9.4, RESULT, "adapter", "safetensors + manifest, reloads with equal logits"),
}  # fmt: skip
ARROWS = (
    ("recipe", "select", 2.2),
    ("model", "select", 7.2),
    ("data", "process", 12.2),
    ("select", "prepare", 4.7),
    ("prepare", "wrap", 4.7),
    ("process", "loop", 12.2),
    ("loop", "adapter", 12.2),
)
HEIGHT = 1.3


def _box(axes: Axes, name: str) -> None:
    x, y, width, colour, title, text = BOXES[name]
    shape = "round,pad=0,rounding_size=0.15"
    axes.add_patch(FancyBboxPatch((x, y), width, HEIGHT, boxstyle=shape, facecolor=colour, edgecolor="#444"))
    axes.text(x + width / 2, y + 0.86, title, ha="center", va="center", fontsize=11, weight="bold")
    axes.text(x + width / 2, y + 0.38, text, ha="center", va="center", fontsize=8.5, color="#333")


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color="#444", shrinkA=0, shrinkB=0))


def draw() -> Figure:
    """Return the picture."""
    figure = Figure(figsize=(10, 6.6))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(-0.1, 14.5)
    axes.set_ylim(0.3, 9.6)
    axes.axis("off")
    for name in BOXES:
        _box(axes, name)
    for above, below, x in ARROWS:
        _arrow(axes, (x, BOXES[above][1]), (x, BOXES[below][1] + HEIGHT))
    middle = BOXES["wrap"][1] + HEIGHT / 2
    _arrow(axes, (9.4, middle), (10.0, middle))
    return figure


if __name__ == "__main__":
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "flow", "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        draw().savefig(PICTURE, metadata={"Date": None})
