"""The front door: from a model folder to a model and its processor, without remote code."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lora_plugin.contract import LoadRequest, Processor
from vlm_lora_plugin.errors import ModelError, nearest
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.planning.resolved import ResolvedRecipe
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.plugins.outlines import ranks_have_met
from vlm_lora_plugin.recipe import DataSettings, RecipeDocument, RecipeSource

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from vlm_lora_plugin.contract import Family


def load(
    folder: str | Path,
    recipe: RecipeSource | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: str = "cpu",
    seed: int = 42,
) -> tuple[PreTrainedModel, Processor]:
    """Load a model folder of a known family, by its content and without running code from it.

    Args:
        folder: A downloaded model folder (``config.json``, weights, tokenizer files).
        recipe: The recipe to train with, in any form; its ``data.processor`` and ``data.exif_transpose`` decide how the
            processor sees images. None takes the family's defaults.
        dtype: Parameter dtype or its name, ``"bfloat16"``; None for the one the config names.
        device: ``"cpu"``, ``"cuda"``..., or ``"meta"`` for a model without weights.
        seed: Seed of the initialisation of LoRA that the checkpoint lacks.

    Returns:
        The model in eval mode, and its processor.

    Raises:
        AdapterError: A function of the family plugin raised something unexpected.
        ModelError: The folder is of no known family, or ``dtype`` is none that a model can have.
        RecipeError: The recipe cannot be read, or does not fit the model's processor.
        WeightsError: Tensors are missing, extra or of another shape.
    """
    from vlm_lora_plugin.models.dtypes import to_dtype  # imports torch

    path, wanted = Path(folder), to_dtype(dtype)
    manager = get_manager()
    family = manager.family_of_folder(path)
    seen = _as_images_are_seen(recipe, family, path)
    request = replace(seen, dtype=wanted, device=device, seed=seed)
    # First what takes no time: a broken vocabulary is found before gigabytes of weights are read.
    processor = manager.load_processor(family, request)
    return manager.load_model(family, request), processor


def load_processor(folder: str | Path, recipe: RecipeSource | None = None) -> Processor:
    """Load the processor of a model folder, without its model.

    Args:
        folder: A model folder; weights may be missing.
        recipe: As in :func:`load`.

    Raises:
        AdapterError: A function of the family plugin raised something unexpected.
        ModelError: The folder is of no known family.
        RecipeError: The recipe cannot be read, or does not fit the model's processor.
        TrainingError: The recipe names its hardware and is not resolved yet, and a process group exists already.
    """
    path = Path(folder)
    manager = get_manager()
    family = manager.family_of_folder(path)
    return manager.load_processor(family, _as_images_are_seen(recipe, family, path))


def _as_images_are_seen(recipe: RecipeSource | None, family: Family, folder: Path) -> LoadRequest:
    """Return the request for a folder's processor as the recipe has it."""
    data = DataSettings() if recipe is None else _data_settings(recipe, family, folder)
    return LoadRequest(folder, processor=data.processor, exif_transpose=data.exif_transpose)


def _data_settings(recipe: RecipeSource, family: Family, folder: Path) -> DataSettings:
    find = partial(get_manager().architecture_of_folder, family, folder)
    if ranks_have_met() and not isinstance(recipe, ResolvedRecipe) and not RecipeDocument.read(recipe).says("hardware"):
        return resolve_recipe(recipe, family).data  # prepare compares components with the model itself
    return resolve_recipe(recipe, family, architecture=find).data


def check_variant(family: Family, variant: str | None) -> None:
    """Refuse a variant that a family has not.

    Raises:
        ModelError: It has none of that name.
    """
    if variant is not None and variant not in family.variants:
        raise ModelError(
            f"{family.title} has no variant '{variant}'",
            fix=nearest(variant, family.variants) if family.variants else "Leave it out: there is only one.",
        )


def load_model(
    folder: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: str = "cpu",
    variant: str | None = None,
) -> PreTrainedModel:
    """Load a model without its processor; on the meta device the folder's ``config.json`` alone is enough.

    Args:
        folder: A model folder.
        dtype: Parameter dtype or its name, ``"bfloat16"``; None for the one the config names.
        device: ``"cpu"``, ``"cuda"``..., or ``"meta"`` for a model without weights.
        variant: One of ``Family.variants``, where neither the config nor weights say which one it is.

    Raises:
        AdapterError: A function of the family plugin raised something unexpected.
        ModelError: The folder is of no known family, or its family has no such variant.
        WeightsError: Tensors are missing, extra or of another shape.
    """
    from vlm_lora_plugin.models.dtypes import to_dtype  # imports torch

    path, wanted = Path(folder), to_dtype(dtype)
    manager = get_manager()
    family = manager.family_of_folder(path)
    check_variant(family, variant)
    request = LoadRequest(folder=path, dtype=wanted, device=device, variant=variant)
    return manager.load_model(family, request)
