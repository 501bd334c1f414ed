"""The front door: from a model folder to a model and its processor, without remote code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lora_plugin.contract import LoadRequest, OptionValue, Processor
from vlm_lora_plugin.errors import ModelError, nearest
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.recipe import RecipeSource

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


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
            processor sees images.
            None takes the family's defaults.
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
    settings: Mapping[str, OptionValue] = {}
    turns = False
    if recipe is not None:
        find = partial(manager.architecture_of_folder, family, path)
        data = resolve_recipe(recipe, family, architecture=find).data
        settings, turns = data.processor, data.exif_transpose
    request = LoadRequest(path, wanted, device, seed, processor=settings, exif_transpose=turns)
    # First what takes no time: a broken vocabulary is found before gigabytes of weights are read.
    processor = manager.load_processor(family, request)
    return manager.load_model(family, request), processor


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
        ModelError: The folder is of no known family, its family has no such variant, or ``dtype`` is none.
        WeightsError: Tensors are missing, extra or of another shape.
    """
    from vlm_lora_plugin.models.dtypes import to_dtype  # imports torch

    path, wanted = Path(folder), to_dtype(dtype)
    manager = get_manager()
    family = manager.family_of_folder(path)
    if variant is not None and variant not in family.variants:
        raise ModelError(
            f"{family.title} has no variant '{variant}'",
            fix=nearest(variant, family.variants) if family.variants else "Leave it out: there is only one.",
        )
    request = LoadRequest(folder=path, dtype=wanted, device=device, variant=variant)
    return manager.load_model(family, request)
