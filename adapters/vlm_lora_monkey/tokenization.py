"""Qwen's tokenizer as the library's fast tokenizer, built from the published ``qwen.tiktoken``."""

from __future__ import annotations

import base64
from pathlib import Path

VOCABULARY_FILE = "qwen.tiktoken"


def write_tiny_vocabulary(folder: str | Path) -> Path:
    """Write a ``qwen.tiktoken`` that holds the 256 single bytes and nothing else.

    With it ``<|endoftext|>`` is 256, ``<img>`` 470, ``</img>`` 471 and ``<imgpad>`` 472; tests and tiny models
    use it, since the published vocabulary has a licence of its own.

    Args:
        folder: Where the file goes; made when missing.

    Returns:
        The file written.
    """
    path = Path(folder) / VOCABULARY_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{base64.b64encode(bytes([rank])).decode('ascii')} {rank}\n" for rank in range(256)]
    path.write_text("".join(lines), "ascii")
    return path
