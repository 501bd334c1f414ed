"""The adapter that a job starts from (``train --from-adapter``): its folder, its recipe, and what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.checkpoint.output import OutputFolder
from vlm_lora_plugin.errors import CheckpointError, RecipeError, listed
from vlm_lora_plugin.planning.record import read_sources
from vlm_lora_plugin.recipe import Recipe, RecipeDocument

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from vlm_lora_plugin.contract import Architecture, Family
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe
    from vlm_lora_plugin.recipe import RecipeSource
    from vlm_lora_plugin.selection.manifest import Manifest
    from vlm_lora_plugin.selection.trainables import TrainableSet


@dataclass(frozen=True)
class Parent:
    """An adapter that a job starts from.

    Attributes:
        folder: That holds what was trained.
        manifest: Its manifest.
        job: The output folder of the job that it comes from, or None where it was moved out of it.
    """

    folder: Path
    manifest: Manifest
    job: OutputFolder | None

    @property
    def told(self) -> str:
        """The adapter and what it has behind it, as a sentence's end."""
        steps = [entry.steps for entry in self.manifest.lineage] + [self.manifest.steps]
        known = sum(step for step in steps if step is not None)
        return f"{self.folder}" + (f", trained for {known} steps" if known else "")


def find_parent(path: Path) -> Parent:
    """Find the adapter that a path names: its own folder, a Trainer's checkpoint, or a job's output folder.

    Raises:
        CheckpointError: There is none, or it is broken.
    """
    from vlm_lora_plugin.checkpoint.completion import check_complete
    from vlm_lora_plugin.checkpoint.files import CHECKPOINT_NAME, MANIFEST
    from vlm_lora_plugin.checkpoint.manifest_file import read_manifest

    inside = OutputFolder(path).adapter
    folder = inside if not (path / MANIFEST).is_file() and (inside / MANIFEST).is_file() else path
    if not (folder / MANIFEST).is_file() and OutputFolder(path).recipe.is_file():
        raise CheckpointError(
            f"The job in {path} has no adapter yet",
            why="It is written when the job is done.",
            fix=f"Finish it with --resume, or give one of {OutputFolder(path).checkpoints}/checkpoint-N.",
        )
    manifest = read_manifest(folder)
    if CHECKPOINT_NAME.fullmatch(folder.name):
        check_complete(folder)
    at = folder.absolute()
    homes = (OutputFolder(at.parent), OutputFolder(at.parent.parent))
    job = next((home for home in homes if at in (home.adapter, home.checkpoints / at.name)), None)
    return Parent(folder, manifest, job if job is not None and job.recipe.is_file() else None)


def recipe_of_parent(
    parent: Parent, folder: Path, recipe: RecipeSource | None, overrides: Mapping[str, Any], overridden_by: str
) -> tuple[Family, ResolvedRecipe]:
    """Return the recipe of a job that starts from an adapter: the adapter's own, unless one is given.

    Args:
        parent: The adapter.
        folder: The model folder.
        recipe: The recipe that is given, or None.
        overrides: A document laid over it. With a preset in it, the adapter's recipe is not used.
        overridden_by: Who wrote it, for messages.

    Raises:
        CheckpointError: The adapter belongs to another family.
        ModelError: The folder is of no known family.
        RecipeError: The recipe has an unknown key, value or preset.
    """
    from vlm_lora_plugin.planning.resolve import resolve
    from vlm_lora_plugin.plugins.manager import get_manager

    manager = get_manager()
    family = manager.family_of_folder(folder)
    if family.name != parent.manifest.family:
        raise CheckpointError(
            f"{parent.folder} belongs to the family {parent.manifest.family}, {folder} is {family.name}",
            fix="Give the model folder that it was trained on.",
        )
    find: partial[Architecture] = partial(manager.architecture_of_folder, family, folder)
    if recipe is not None or overrides.get("preset") is not None:
        return family, resolve(RecipeDocument.read(recipe, overrides, overridden_by=overridden_by), family, find)
    kept = Recipe.parse(parent.manifest.recipe, source=str(parent.folder))
    sources = None if parent.job is None else read_sources(parent.job.sources, kept)
    if sources is None:
        written = RecipeDocument.as_trained(kept.document(), "the adapter as it was trained", str(parent.folder))
    else:
        written = RecipeDocument.recorded(kept.document(), sources, str(parent.folder))
    if overrides:
        written = written.under(overrides, overridden_by)
    return family, resolve(written, family, find).model_copy(update={"origin": kept.origin})


def check_same_selection(
    parent: Parent, trainables: TrainableSet, recipe: Recipe, config: PreTrainedConfig, dtype: str
) -> None:
    """Refuse to train something else than the adapter holds, or to train it on another base.

    Args:
        parent: The adapter.
        trainables: What the job's recipe trains in the model.
        recipe: The job's recipe.
        config: The model's config.
        dtype: Name of the dtype that the frozen weights are to have.

    Raises:
        CheckpointError: The adapter was trained on a base of another architecture.
        RecipeError: The recipe trains other parameters, or the same ones with another meaning; shows both.
    """
    from vlm_lora_plugin.checkpoint.load import check_base
    from vlm_lora_plugin.selection.manifest import make_manifest, part_differences, trainable_differences

    check_base(parent.manifest, config, parent.folder)
    own = make_manifest(trainables, recipe, config, dtype)
    found = part_differences(parent.manifest, own) or trainable_differences(parent.manifest, own)
    if found:
        raise RecipeError(
            f"The recipe trains something else than {parent.folder} holds (adapter / recipe): {listed(found)}",
            why="What was trained could not be gone on with, or would get another meaning.",
            fix="Leave these settings as the adapter has them; without --recipe and --preset its own recipe is taken.",
        )


def moments_of(parent: Parent) -> Path:
    """Return the checkpoint that holds the state of the optimizer with which an adapter was trained.

    Raises:
        CheckpointError: There is none: the adapter was moved out of its job, or trained under ZeRO.
    """
    from vlm_lora_plugin.checkpoint.completion import checkpoints, why_incomplete
    from vlm_lora_plugin.frameworks.trainer.kept_optimizer import OPTIMIZER_STATE
    from vlm_lora_plugin.prepared.lineage import adapter_digest

    near: list[Path] = [parent.folder, *(checkpoints(parent.job.checkpoints) if parent.job is not None else ())]
    wanted = adapter_digest(parent.folder)
    for folder in near:
        if (folder / OPTIMIZER_STATE).is_file() and why_incomplete(folder) is None and adapter_digest(folder) == wanted:
            return folder
    raise CheckpointError(
        f"The state of the optimizer that trained {parent.folder} is not there",
        why=f"It lies in the job's checkpoint of the same step, as {OPTIMIZER_STATE}; ZeRO shards it and writes none.",
        fix="Give the checkpoint itself (checkpoints/checkpoint-N), or leave --keep-optimizer out.",
    )
