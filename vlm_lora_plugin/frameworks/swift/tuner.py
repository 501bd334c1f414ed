"""The tuner ``vlm_lora``: the same ``prepare`` as everywhere, and saving and loading of the whole trainable set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from swift.tuner_plugin import Tuner

from vlm_lora_plugin.frameworks.swift.job import SwiftJob
from vlm_lora_plugin.frameworks.swift.recipe import given_recipe
from vlm_lora_plugin.frameworks.trainer.hooks import install_hooks
from vlm_lora_plugin.prepared.lineage import start_from
from vlm_lora_plugin.prepared.model import VlmLoraPeftModel
from vlm_lora_plugin.prepared.preparation import load_trained, prepare_model

if TYPE_CHECKING:
    import torch
    from swift.arguments import SftArguments
    from transformers import PreTrainedModel


class VlmLoraTuner(Tuner):  # type: ignore[misc]  # Swift is untyped
    """What Swift calls before its trainer exists, and whenever it saves or loads."""

    @staticmethod
    def prepare_model(args: SftArguments, model: PreTrainedModel) -> VlmLoraPeftModel:
        """Prepare the loaded model by the run's recipe, and load the adapter that ``vlm-lora train`` starts from."""
        install_hooks()
        prepared, job = prepare_model(model, given_recipe()), SwiftJob.of_process()
        if job is not None and job.parent is not None:
            start_from(prepared, job.parent)
        return prepared

    @staticmethod
    def save_pretrained(
        model: VlmLoraPeftModel,
        save_directory: str,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        safe_serialization: bool = True,
        **_: Any,
    ) -> None:
        """Write everything that was trained; from ``state_dict`` where DeepSpeed has gathered it."""
        model.save_pretrained(save_directory, safe_serialization=safe_serialization, state_dict=state_dict)

    @staticmethod
    def from_pretrained(
        model: PreTrainedModel, model_id: str, is_trainable: bool = False, **_: Any
    ) -> VlmLoraPeftModel:
        """Prepare the loaded model and load what was trained.

        To go on training, the run's recipe decides, and must train what the checkpoint holds. Otherwise the
        recipe in the checkpoint does.
        """
        install_hooks()
        if not is_trainable:
            return load_trained(model, model_id)
        recipe = given_recipe()
        if recipe is None:
            return load_trained(model, model_id, is_trainable=True)
        prepared = prepare_model(model, recipe)
        start_from(prepared, model_id)  # a run that is resumed loads its checkpoint once more, as its own
        return prepared
