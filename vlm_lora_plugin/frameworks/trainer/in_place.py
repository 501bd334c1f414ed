"""A plain model that a Trainer holds already, prepared without replacing it.

``prepare`` changes its base in place and returns a wrapper around it. Here the wrapper stays beside the base:
it knows the selection, saves and loads, while the Trainer goes on with the base itself. What the Trainer asks
of the base (saving, loading, checkpointing) is passed on to the wrapper.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from vlm_lora_plugin.checkpoint.files import CHECKPOINT_NAME, TRAINER_WEIGHTS, write_tensors
from vlm_lora_plugin.errors import CheckpointError, TrainingError, listed
from vlm_lora_plugin.names import canonical_name, is_injected
from vlm_lora_plugin.prepared.model import PREPARED_ATTRIBUTE, LoadResult, VlmLoraPeftModel
from vlm_lora_plugin.prepared.preparation import prepare_model

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from vlm_lora_plugin.recipe import RecipeSource


def prepare_in_place(model: nn.Module | None, recipe: RecipeSource, args: TrainingArguments) -> VlmLoraPeftModel:
    """Prepare the model of a Trainer that is built already.

    Args:
        model: The Trainer's model; it stays the Trainer's model.
        recipe: A recipe in any form.
        args: The Trainer's arguments.

    Returns:
        The wrapper around the model, which is not a part of what the Trainer trains or saves by itself.

    Raises:
        TrainingError: The Trainer would shard, copy or replace the model, so that it must be prepared before.
        ModelError: No family owns the model, or it is not freshly loaded.
        SelectionError: The recipe does not fit the model.
    """
    obstacle = _obstacle(model, args)
    if obstacle is not None or not isinstance(model, PreTrainedModel):
        raise TrainingError(
            f"VlmLoraCallback cannot prepare this Trainer's model by itself: {obstacle}",
            why="It would be trained, saved or resumed wrongly.",
            fix="Call model = vlm_lora_plugin.prepare(model, recipe) first, and give that model to the Trainer.",
        )
    prepared = prepare_model(model, recipe)
    vars(model)[PREPARED_ATTRIBUTE] = prepared  # past nn.Module, which would make it a part of the model
    for method in (save_pretrained, load_state_dict, gradient_checkpointing_enable, gradient_checkpointing_disable):
        vars(model)[method.__name__] = MethodType(method, model)
    return prepared


def _obstacle(model: nn.Module | None, args: TrainingArguments) -> str | None:
    """Return why a model cannot be prepared in place, or None."""
    if not isinstance(model, PreTrainedModel):
        return f"it is a {type(model).__name__}, already wrapped by something else"
    if is_injected(model):
        return "it already has PEFT layers"
    if args.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in {"1", "true"}:
        return "DeepSpeed partitions it"
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        return "it is quantised"
    if args.n_gpu > 1:
        return f"nn.DataParallel copies it to {args.n_gpu} GPUs at every step"
    return None


def save_pretrained(
    self: PreTrainedModel,
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    **_: Any,
) -> None:
    """Write what a prepared model writes; in a Trainer's checkpoint, also the file that it will resume from."""
    _prepared(self).save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict)
    path = Path(save_directory)
    if is_main_process and CHECKPOINT_NAME.fullmatch(path.name):
        source = _trainables(self) if state_dict is None else state_dict
        tensors = {name: source[name].detach().to("cpu", torch.float32).contiguous() for name in _trainables(self)}
        write_tensors(path / TRAINER_WEIGHTS, tensors)


def load_state_dict(
    self: PreTrainedModel, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
) -> Any:
    """Load as the class does; without ``strict``, at least everything that is trained.

    Raises:
        CheckpointError: A trained parameter is missing, so that it would stay as it is.
    """
    missing = sorted(canonical_name(name) for name in _trainables(self).keys() - state_dict.keys())
    if missing and not strict:
        raise CheckpointError(
            f"Trained parameters are missing from what is to be loaded: {listed(missing)}",
            why="They would keep the values they have.",
            fix="Resume from a checkpoint of this very recipe.",
        )
    result = type(self).load_state_dict(self, state_dict, strict=strict, assign=assign)
    return LoadResult((), result.unexpected_keys)  # what is frozen need not be there


def gradient_checkpointing_enable(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
    """See :meth:`VlmLoraPeftModel.gradient_checkpointing_enable`."""
    _prepared(self).gradient_checkpointing_enable(*args, **kwargs)


def gradient_checkpointing_disable(self: PreTrainedModel) -> None:
    """See :meth:`VlmLoraPeftModel.gradient_checkpointing_disable`."""
    _prepared(self).gradient_checkpointing_disable()


def _prepared(model: PreTrainedModel) -> VlmLoraPeftModel:
    prepared: VlmLoraPeftModel = vars(model)[PREPARED_ATTRIBUTE]
    return prepared


def _trainables(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the names in memory -> parameter of everything that is trained."""
    wanted = _prepared(model).vlm_lora.trainable.names
    return {name: parameter for name, parameter in model.named_parameters() if canonical_name(name) in wanted}
