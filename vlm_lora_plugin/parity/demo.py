"""A tiny model and data to compare the frameworks on when there is none at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_lora_plugin.errors import AdapterError
from vlm_lora_plugin.plugins.manager import get_manager

TRAINING_ROWS, VALIDATION_ROWS = 11, 3
LENGTH: dict[str, Any] = {
    "max_steps": 5,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 2,
    "eval_steps": 2,
    "save_steps": 5,
}
"""Training settings of the demo, where the command line gives no others."""

_COLOURS = {"red": (220, 20, 20), "dark green": (10, 100, 10), "blue": (20, 20, 220), "pale yellow": (250, 250, 180)}


def write_demo(folder: Path, family_name: str | None) -> tuple[Path, Path, Path]:
    """Write a tiny model and two small data files: images of all shapes, answers of all lengths, some without an image.

    Args:
        folder: Where they go.
        family_name: Whose tiny model; None for the first family that brings one.

    Returns:
        The model folder, the training data and the validation data.

    Raises:
        AdapterError: The family brings no demo, or none does.
    """
    manager = get_manager()
    families = list(manager.families().values()) if family_name is None else [manager.family(family_name)]
    writers = [(family, write) for family in families if (write := family.test_support.write_tiny_model) is not None]
    if not writers:
        raise AdapterError(
            f"{families[0].title} brings no demo" if family_name else "No installed family brings a demo",
            fix="Give a model, --recipe and --data instead.",
        )
    model = folder / "model"
    manager.function(*writers[0])(model)
    return model, write_rows(folder, "train", 0, TRAINING_ROWS), write_rows(folder, "val", 50, VALIDATION_ROWS)


def with_demo_length(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document laid over a recipe, with the demo's training settings where it has none."""
    learning = {"learning_rate": 1e-2, "warmup_ratio": 0.0, **overrides.get("optimizer", {})}
    return {**overrides, "optimizer": learning, "training": {**LENGTH, **overrides.get("training", {})}}


def write_rows(folder: Path, name: str, first: int, count: int) -> Path:
    """Write a data file and its images.

    Args:
        folder: Where they go.
        name: The file's name, without ``.jsonl``.
        first: Number of the first row; equal numbers give equal rows.
        count: Rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(first, first + count):
        colour, rgb = list(_COLOURS.items())[number % len(_COLOURS)]
        answer = " and ".join([colour] * (1 + number % 3))
        row: dict[str, object] = {"messages": [{"role": "user", "content": f"Say {colour}."}]}
        if number % 4 != 3:
            image = f"{name}-{number}.png"
            Image.new("RGB", (20 + 3 * number, 30), rgb).save(folder / image)
            row = {"messages": [{"role": "user", "content": "<image>Which colour?"}], "images": [image]}
        row["messages"] = [*row["messages"], {"role": "assistant", "content": answer}]  # type: ignore[misc]
        lines.append(json.dumps(row) + "\n")
    file = folder / f"{name}.jsonl"
    file.write_text("".join(lines), "utf-8")
    return file
