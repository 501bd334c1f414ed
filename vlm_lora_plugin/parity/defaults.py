"""Defaults that differ between the Trainer and ms-swift, read from both libraries, and what a recipe sets instead."""

from __future__ import annotations

import json
import subprocess
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from vlm_lora_plugin.errors import SwiftError
from vlm_lora_plugin.parallel.children import code_line, environment

RESOLVED_LATER = "by other options"
"""Shown for a default of None, which Swift replaces by a rule of its own."""

_LORA = {"lora_rank": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
_OF_SWIFT_ALONE = ("dataset_shuffle", "strict", "truncation_strategy", "vit_gradient_checkpointing", "check_model")
_BY_DTYPE = ("bf16", "fp16")
_UNCHANGED = {"check_model": "false"}


@dataclass(frozen=True)
class Line:
    """One option whose default differs.

    Attributes:
        option: Its name in Swift.
        trainer: The default of transformers' ``TrainingArguments``, of PEFT's ``LoraConfig`` for LoRA; ``-`` for none.
        swift: The default of ``swift sft``.
        key: The recipe's key that decides it; empty where it is fixed.
        value: What both frameworks get with a recipe's defaults.
    """

    option: str
    trainer: str
    swift: str
    key: str
    value: str


def differing_defaults() -> list[Line]:
    """Return every option with another default in Swift than in the Trainer or PEFT, in the order of their classes.

    They are read in a process of their own: importing Swift replaces parts of transformers' Trainer.

    Raises:
        SwiftError: ms-swift is not installed, of a version that is not supported, or cannot be imported.
    """
    from vlm_lora_plugin.frameworks.swift.versions import check_version

    check_version()
    code = f"from {__name__} import write_differing; import sys; write_differing(sys.argv[1])"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "defaults.json"
        done = subprocess.run(
            [*code_line(code), str(file)], capture_output=True, text=True, check=False, env=environment()
        )
        if not file.is_file():
            raise SwiftError("Swift's defaults cannot be read", why=done.stderr, fix="Install ms-swift anew.")
        return [Line(**line) for line in json.loads(file.read_text("utf-8"))]


def write_differing(file: str) -> None:
    """Write the lines of :func:`differing_defaults` as JSON; for a process that does nothing else."""
    lines = [vars(line) for line in _differing()]
    Path(file).write_text(json.dumps(lines), "utf-8")


def _differing() -> list[Line]:
    from peft import LoraConfig
    from swift.arguments import SftArguments
    from transformers import TrainingArguments

    ours = {field.name: _default(field) for field in fields(TrainingArguments)}
    theirs = {field.name: _default(field) for field in fields(SftArguments)}
    lora = LoraConfig()
    ours |= {name: getattr(lora, own) for name, own in _LORA.items()}
    found = [_line(name, _shown(ours[name]), theirs[name]) for name in ours if _differs(name, ours, theirs)]
    return found + [_line(name, "-", theirs[name]) for name in _OF_SWIFT_ALONE if name in theirs]


def table(lines: list[Line]) -> Table:
    """Return the lines for people."""
    shown = Table(title="defaults that differ, and what a recipe's defaults set in both")
    for title in ("option", "transformers.Trainer, PEFT", "ms-swift", "recipe's key", "with a recipe"):
        shown.add_column(title)
    for line in lines:
        shown.add_row(line.option, line.trainer, line.swift, line.key, line.value)
    return shown


def _differs(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return name in theirs and ours[name] != theirs[name]


def _line(name: str, trainer: str, default: Any) -> Line:
    from vlm_lora_plugin.frameworks.swift.options.apply import value_of
    from vlm_lora_plugin.frameworks.swift.options.table import OPTIONS, LaidOver, OfRecipe, OfSelection, OfTrainer, Only
    from vlm_lora_plugin.frameworks.trainer import argument_values
    from vlm_lora_plugin.recipe import Recipe

    recipe = Recipe()
    treatment = OPTIONS[name]
    swift = RESOLVED_LATER if default is None else _shown(default)
    if name in _BY_DTYPE:
        return Line(name, trainer, swift, "--dtype", "by the dtype of the base")
    if isinstance(treatment, (LaidOver, OfRecipe, OfSelection)):
        return Line(name, trainer, swift, treatment.key, _shown(value_of(recipe, treatment.key)))
    if isinstance(treatment, OfTrainer):
        return Line(name, trainer, swift, "", _shown(argument_values(recipe, evaluate=True).get(name, trainer)))
    if isinstance(treatment, Only):
        return Line(name, trainer, swift, "", _shown(treatment.values[0]) if treatment.values else swift)
    return Line(name, trainer, swift, "", _UNCHANGED.get(name, "each its own; nothing trained depends on it"))


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else None


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(part)}" for key, part in value.items()) or "off"
    if isinstance(value, (list, tuple)):
        return " ".join(map(_shown, value)) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
