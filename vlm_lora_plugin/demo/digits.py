"""Real images for the demo: scikit-learn's handwritten digits as PNG files and JSONL conversations."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from vlm_lora_plugin.errors import DataError

QUESTION = "<image>Which digit?"
SIZE = 32
"""Side of the PNG files in pixels; the originals have 8."""

HELD_OUT_EVERY = 6
"""Every sixth image is kept from training: 300 of 1797."""


def write_digits(folder: Path) -> tuple[Path, Path]:
    """Write the images and two JSONL files.

    The images are the 1797 of the UCI ML hand-written digits set that scikit-learn ships.

    Args:
        folder: Made; must not exist.

    Returns:
        The training file (1497 rows) and the held-out file (300 rows).

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("The demo needs scikit-learn", fix="pip install 'vlm-lora-plugin[demo]'") from error
    digits = load_digits()
    images = folder / "images"
    images.mkdir(parents=True)
    parts: dict[str, list[str]] = {"train": [], "held-out": []}
    for index, (picture, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = images / f"{index:04d}.png"
        pixels = (picture * (255 / 16)).astype("uint8")
        Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(file)
        row = {
            "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": str(label)}],
            "images": [f"images/{file.name}"],
        }
        parts["train" if index % HELD_OUT_EVERY else "held-out"].append(json.dumps(row) + "\n")
    for name, lines in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    return folder / "train.jsonl", folder / "held-out.jsonl"
