"""Recipes as people and damaged files write them, and what ``train --dry-run`` and then ``train`` make of them."""

from __future__ import annotations

import io
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from evil import TEXTS, damaged, value
from fuzzing import Kind, Silent
from pydantic import BaseModel
from rich.console import Console

from vlm_lora_plugin.documents import leaves, value_at
from vlm_lora_plugin.errors import VlmLoraError
from vlm_lora_plugin.job.train import check_and_show, run
from vlm_lora_plugin.job.train_job import TrainJob
from vlm_lora_plugin.recipe import Recipe

PLAIN: dict[str, Any] = {
    "components": {"vision": "lora", "language": "lora"},
    "lora": {"r": 2, "lora_alpha": 4},
    "training": {"max_steps": 1, "gradient_accumulation_steps": 1},
    "data": {"max_length": 512},
}

WORDS: dict[str, tuple[Any, ...]] = {
    "optimizer.lr_scheduler_type": (
        "linear",
        "cosine",
        "constant",
        "constant_with_warmup",
        "polynomial",
        "cosine_with_restarts",
        "inverse_sqrt",
        "reduce_lr_on_plateau",
        "cosine_with_min_lr",
        "warmup_stable_decay",
        "cosine_warmup_with_min_lr",
        "greedy",
    ),
    "preset": ("lora", "lora-only", "lora+llm", "Lora"),
    "hardware": ("1x24", "3x24", "8x80", "0x24", "1x0", "999999x1", "1x1e9", "٣x٢٤"),
    "family": ("monkey", "omnilmm", "Monkey"),
    "components": ({"vision": "full"}, {"language": "full"}, {"head": "lora"}, {"vision": "frozen"}),
    "rules": (
        [{"pattern": "(a+)+$", "means": "full"}],
        [{"pattern": "([a-z_.0-9]+)+!", "means": "lora"}],
        [{"pattern": ".*", "means": "full"}],
        [{"component": "language", "layers": "0-1", "means": "lora"}],
        [{"component": "language", "layers": "010", "means": "lora"}],
        [{"component": "language", "layers": "5-2", "means": "lora"}],
        [{"component": "language", "layers": [99999999999], "means": "lora"}],
    ),
}


def keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every dotted key that a recipe may have, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel) and name != "rules":
                yield from keys(inner, f"{prefix}{name}.")


ALL_KEYS = tuple(keys())
DEFAULTS = Recipe().document()


def _set(document: dict[str, Any], key: str, new: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = document.get(section)
        document[section] = inner = dict(inner) if isinstance(inner, dict) else {}
        document = inner
    document[last] = new


def draw(source: random.Random) -> tuple[str, str | bytes]:
    """Draw a recipe's text."""
    document: dict[str, Any] = {key: dict(part) for key, part in PLAIN.items()}
    way = source.randrange(10)
    if way == 0:
        text = yaml.safe_dump(document)
        line = source.choice(text.splitlines(keepends=True))
        return "a line doubled", text + line
    if way == 1:
        return damaged(source, yaml.safe_dump(document).encode())
    if way == 2:
        _set(document, source.choice(("trainings", "lora.rank", "data.max_lenght", source.choice(TEXTS))), 1)
        return "an unknown key", _dumped(document)
    for _ in range(source.choice((1, 1, 2))):
        key = source.choice(ALL_KEYS)
        _set(document, key, _another(source, key))
    return "a value of another kind", _dumped(document)


def _another(source: random.Random, key: str) -> Any:
    default = value_at(DEFAULTS, key)
    if key in WORDS and source.random() < 0.8:
        return source.choice(WORDS[key])
    if isinstance(default, bool) and source.random() < 0.5:
        return not default
    if isinstance(default, (int, float)) and source.random() < 0.5:
        return type(default)(default * source.choice((0, 0.5, 2, 3, 10, 1e3, 1e6, 1e12)))
    return value(source)


def _dumped(document: dict[str, Any]) -> str | bytes:
    try:
        return yaml.safe_dump(document, allow_unicode=True)
    except RecursionError:  # YAML's own writer gives up where its reader must not
        depth = 2000
        return f"seed: {'[' * depth}{']' * depth}\n"


class Bench:
    """A tiny model and a row of data that recipes are tried on."""

    def __init__(self, folder: Path, model: Path, data: Path) -> None:
        self.folder, self.model, self.data = folder, model, data
        self.recipe, self.output = folder / "recipe.yaml", folder / "out"
        self.started = 0

    def kind(self, start_every: int) -> Kind[str | bytes]:
        """Recipes on this bench; of those that pass the dry run, one in ``start_every`` is trained for a step."""

        def use(text: str | bytes) -> None:
            raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
            self.recipe.write_bytes(raw)
            job = self._job()
            quiet = Console(file=io.StringIO(), width=200)
            plan = check_and_show(job, quiet)
            _compare(raw, plan.recipe)
            if self.output.exists():
                raise Silent("a dry run left an output folder")
            self.started += 1
            if self.started % start_every == 0:
                self._start(quiet)

        return Kind("recipe", draw, use)

    def _job(self, overrides: dict[str, Any] | None = None) -> TrainJob:
        return TrainJob(
            self.model, self.data, self.output, recipe=self.recipe, overrides=overrides or {}, check_images=False
        )

    def _start(self, console: Console) -> None:
        steps = {"training": {"max_steps": 1, "gradient_accumulation_steps": 1}}
        job = self._job(steps)
        try:
            check_and_show(job, console)
        except VlmLoraError:  # what was drawn says how long it trains, and the two keys contradict each other
            return
        try:
            run(self._job(steps), console)
        except VlmLoraError as error:
            raise Silent(f"passed the dry run and does not start: {error}") from error
        finally:
            shutil.rmtree(self.output, ignore_errors=True)


def _compare(raw: bytes, resolved: Recipe) -> None:
    """Each value that was written must be the value that is used."""
    written = yaml.safe_load(raw) or {}
    used = resolved.document()
    for key, wanted in leaves(written):
        found = value_at(used, key)
        if isinstance(wanted, (bool, int, float)) and isinstance(found, (bool, int, float)):
            if isinstance(wanted, bool) != isinstance(found, bool) or not math.isclose(wanted, found, rel_tol=1e-12):
                raise Silent(f"{key}: {wanted!r} was written, {found!r} is used")
        elif isinstance(wanted, str) and isinstance(found, str) and wanted != found:
            raise Silent(f"{key}: {wanted!r} was written, {found!r} is used")
