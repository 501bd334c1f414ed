"""Writes the table of Swift's options into docs/how-to/train-with-swift.md: ``python tools/swift_options.py``."""

from __future__ import annotations

from pathlib import Path

from vlm_lora_plugin.frameworks.swift.options.table import (
    OPTIONS,
    Free,
    LaidOver,
    OfModel,
    OfRecipe,
    OfSelection,
    OfTrainer,
    Only,
    Treatment,
)

PAGE = Path(__file__).parents[1] / "docs/how-to/train-with-swift.md"
BEGIN, END = "<!-- options: written by tools/swift_options.py -->\n", "<!-- end of options -->\n"

HEAD = "| option | accepted | key of the recipe, or what to do instead |\n|---|---|---|\n"
SPECIAL = {
    "callbacks": "all but `adalora` and `lisa`, which switch parameters on and off",
    "dataset": "JSONL and JSON files on disk, and `file#100` for the first hundred rows, as `vlm-lora train --data`",
    "val_dataset": "as `--dataset`",
    "split_dataset_ratio": "0, and any value beside `--val_dataset`, where Swift itself splits nothing",
    "template": "the family's own",
    "truncation_strategy": "`right`, and `delete` (`raise`, bad samples skipped), where the recipe leaves it open",
}
"""What holds for one option alone."""


def table() -> str:
    """Return every option of ``swift sft`` with what becomes of it under the tuner ``vlm_lora``."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name, treatment in OPTIONS.items():
        rows.setdefault(_said(name, treatment), []).append(f"`--{name}`")
    return HEAD + "".join(
        f"| {', '.join(names)} | {accepted} | {instead} |\n" for (accepted, instead), names in rows.items()
    )


def _said(name: str, treatment: Treatment) -> tuple[str, str]:
    accepted, instead = _of(treatment)
    return SPECIAL.get(name, accepted), instead


def _of(treatment: Treatment) -> tuple[str, str]:
    match treatment:
        case LaidOver(key):
            return "where the recipe leaves it open, or says the same", f"`{key}`"
        case OfRecipe(key) | OfSelection(key):
            return "where the recipe says the same", f"`{key}`"
        case OfModel(what):
            return f"the {what} that the family's own code uses", "Leave it out."
        case Only(instead, values):
            shown = " or ".join(f"`{str(value).lower() if isinstance(value, bool) else value}`" for value in values)
            return (f"only {shown}" if values else "only Swift's default"), instead
        case OfTrainer():
            return "yes, with the Trainer's default", ""
        case Free():
            return "yes", ""
    raise TypeError(treatment)


def page() -> str:
    """Return the how-to with the table as it is now."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
