"""``prepare`` and ``load_adapter`` as the frameworks' users call them: the core's work, and what the Trainer needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vlm_lora_plugin.checkpoint.manifest_file import read_manifest
from vlm_lora_plugin.frameworks.trainer.hooks import install_hooks
from vlm_lora_plugin.loading import load_model
from vlm_lora_plugin.prepared.preparation import load_trained, prepare_model

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from vlm_lora_plugin.prepared.model import VlmLoraPeftModel
    from vlm_lora_plugin.recipe import RecipeSource


def prepare(model: PreTrainedModel | PeftModel, recipe: RecipeSource | None = None) -> VlmLoraPeftModel:
    """Make a freshly loaded model train exactly what a recipe says, in a Trainer or any other loop.

    The work is that of :func:`vlm_lora_plugin.prepare_model`, which knows no framework. On top,
    the methods of ``transformers.Trainer`` listed in :data:`vlm_lora_plugin.frameworks.trainer.hooks.HOOKS` are
    wrapped, once for the whole process; they act only on models that were prepared, so that learning-rate groups,
    complete checkpoints and resuming need nothing more. For a loop of your own,
    :func:`vlm_lora_plugin.prepare_model` does the same and wraps nothing.

    Args:
        model: The loaded model, before a Trainer or optimizer is built; or one that was prepared already.
        recipe: A Recipe, a mapping, a path to a YAML file or a preset's name; None for the family's default.

    Returns:
        A ``PeftModel``; its ``vlm_lora`` tells what was decided. A model that was prepared with the same
        recipe before is returned as it is, and so is every prepared one when no recipe is given.

    Raises:
        ModelError: No family owns the model, it is not freshly loaded, or an engine trains it already.
        RecipeError: The recipe cannot be read, or a key of the user's would have no effect in this model.
        SelectionError: The recipe does not fit the model.
        TrainingError: Under ZeRO-3, another rank prepares its model differently.
    """
    prepared = prepare_model(model, recipe)
    install_hooks()
    return prepared


def load_adapter(
    base: PreTrainedModel | str | os.PathLike[str], folder: str | os.PathLike[str], is_trainable: bool = False
) -> VlmLoraPeftModel:
    """Bring back a trained model: prepare its base by the manifest's recipe, then load every tensor.

    Args:
        base: The freshly loaded base model, or its folder.
        folder: A folder that ``save_pretrained`` or the Trainer wrote.
        is_trainable: False gives a frozen model in evaluation mode; True one that goes on learning, in the
            mode of the base.

    Returns:
        The prepared model; its logits equal those of the model that was saved.

    Raises:
        CheckpointError: The folder is incomplete, broken, or belongs to another base model.
        ModelError: The base is not freshly loaded.
    """
    if isinstance(base, (str, os.PathLike)):
        base = load_model(Path(base), dtype=getattr(torch, read_manifest(folder).dtype))
    prepared = load_trained(base, folder, is_trainable=is_trainable)
    install_hooks()
    return prepared
