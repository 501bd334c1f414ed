"""Every kind of input that is drawn, made ready to be tried: small models, data and folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import draw_checkpoints
import draw_folders
import draw_images
import draw_recipes
import draw_rows
from fuzzing import Kind
from PIL import Image

from vlm_lora_monkey.tiny import write_tiny_folder as write_monkey
from vlm_lora_omnilmm.tiny import write_tiny_folder as write_omnilmm
from vlm_lora_plugin.loading import load
from vlm_lora_plugin.parity.demo import write_rows
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_xcomposer.tiny import write_tiny_folder as write_xcomposer

FAMILIES = ("monkey", "omnilmm", "xcomposer")

QUICK = {"recipe": 350, "row": 350, "image": 700, "folder": 22, "job": 6, "adapter": 30}
"""How many inputs of each kind are drawn in every run of the suite; of rows and folders, for each family."""

FULL = {"recipe": 3000, "row": 3500, "image": 5000, "folder": 350, "job": 80, "adapter": 400}
"""The same in the slow tests, 20,000 in all."""


def write_model(folder: Path, family: str) -> Path:
    """Write a family's tiny model."""
    writers: dict[str, Any] = {"monkey": write_monkey, "omnilmm": write_omnilmm, "xcomposer": write_xcomposer}
    return Path(writers[family](folder))


def kinds(folder: Path, start_every: int) -> Iterator[tuple[str, Kind[Any]]]:
    """Yield each kind with its key of :data:`QUICK`; ``start_every``: see :meth:`draw_recipes.Bench.kind`.

    The path of the programs that :class:`draw_images.Bench` watches has to be in ``PATH`` before its kind is used.
    """
    models = {family: write_model(folder / family, family) for family in FAMILIES}
    yield "recipe", recipes(folder / "recipes", models["monkey"], start_every)
    for family in FAMILIES:
        yield "row", rows(folder / f"{family}-rows", models[family], family)
    yield "image", images(folder / "images").kind()
    for family in FAMILIES:
        yield "folder", folders(folder / f"{family}-folders", models[family], family)
    job = jobs(folder / "jobs", models["monkey"])
    yield "job", job.resuming()
    yield "adapter", job.loading()


def recipes(folder: Path, model: Path, start_every: int) -> Kind[Any]:
    """Recipes, of which one in ``start_every`` of those that pass the dry run is trained for a step."""
    folder.mkdir(exist_ok=True)
    return draw_recipes.Bench(folder, model, write_rows(folder, "train", 0, 1)).kind(start_every)


def rows(folder: Path, model: Path, family: str) -> Kind[Any]:
    """Rows of a data file, read and encoded for a family."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(folder / "0.png")
    _, processor = load(model, device="meta")
    return draw_rows.Bench(folder, get_manager().family(family), processor).kind()


def images(folder: Path) -> draw_images.Bench:
    """Images, and a folder of programs that tell when one of them is started."""
    folder.mkdir(exist_ok=True)
    return draw_images.Bench(folder)


def folders(folder: Path, model: Path, family: str) -> Kind[Any]:
    """Model folders of a family."""
    folder.mkdir(exist_ok=True)
    return draw_folders.Bench(folder, model, get_manager().family(family)).kind()


def jobs(folder: Path, model: Path) -> draw_checkpoints.Bench:
    """A finished and an interrupted job."""
    folder.mkdir(exist_ok=True)
    return draw_checkpoints.Bench(folder, model, write_rows(folder, "train", 0, 3))
