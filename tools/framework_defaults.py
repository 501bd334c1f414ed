"""Writes docs/reference/framework-defaults.md from the libraries themselves: ``python tools/framework_defaults.py``."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from vlm_lora_plugin.parity.defaults import differing_defaults

PAGE = Path(__file__).parents[1] / "docs/reference/framework-defaults.md"
LIBRARIES = ("transformers", "peft", "ms-swift")

INTRODUCTION = """\
<!-- Written by tools/framework_defaults.py. -->

# Defaults that differ

The same data and model give another result in ms-swift than in transformers' Trainer already because their defaults
differ. With a recipe both get the value in the last column; a key of the recipe changes it in both. Read from
{versions}; `vlm-lora parity --defaults` lists those of the installed versions.

| option of `swift sft` | Trainer, PEFT | ms-swift | recipe's key | with a recipe |
|---|---|---|---|---|
"""


def page() -> str:
    """Return the page for the installed versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    rows = (
        f"| `{line.option}` | {line.trainer} | {line.swift} | {f'`{line.key}`' if line.key else ''} | {line.value} |\n"
        for line in differing_defaults()
    )
    return INTRODUCTION.format(versions=versions) + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
