"""Real images for the demo: scikit-learn's handwritten digits as PNG files and JSONL conversations."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from vlm_lora_plugin.errors import DataError

QUESTION = "<image>Which digit is written here?"
HELD_OUT = 297
"""Images kept from training: the last ones of the set."""


def write_digits(folder: Path, *, size: int) -> tuple[Path, Path]:
    """Write the 1797 images of 8 x 8 pixels, scaled up to ``size`` x ``size``, and two JSONL files.

    The images are those of the UCI ML hand-written digits test set that scikit-learn ships.

    Returns:
        The training file (1500 rows) and the held-out file (297 rows).

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
    rows = []
    for index, (picture, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = images / f"{index:04d}.png"
        Image.fromarray((picture * (255 / 16)).astype("uint8")).resize((size, size), Image.Resampling.BICUBIC).save(
            file
        )
        rows.append(
            {
                "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": str(label)}],
                "images": [str(file.relative_to(folder))],
            }
        )
    train, held_out = folder / "train.jsonl", folder / "held-out.jsonl"
    for path, part in ((train, rows[:-HELD_OUT]), (held_out, rows[-HELD_OUT:])):
        path.write_text("".join(json.dumps(row) + "\n" for row in part), "utf-8")
    return train, held_out
