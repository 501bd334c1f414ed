"""Writing everything that was trained."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vlm_lora_plugin.checkpoint.disk import writing
from vlm_lora_plugin.checkpoint.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_WEIGHTS,
    CHECKPOINT_NAME,
    COMPLETION,
    MANIFEST,
    ONLY_WE_READ,
    TRAINER_WEIGHTS,
    write_file,
    write_tensors,
)
from vlm_lora_plugin.errors import CheckpointError, listed
from vlm_lora_plugin.names import ADAPTER_NAME, PEFT_PREFIX, canonical_name

if TYPE_CHECKING:
    from vlm_lora_plugin.prepared.model import VlmLoraPeftModel


def save_adapter(
    model: VlmLoraPeftModel,
    folder: str | os.PathLike[str],
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write PEFT's adapter files, the base's own trained parameters, and last the manifest.

    Each file appears whole or not at all. A manifest of an earlier save is removed first, so that a folder
    with a manifest is always complete. The manifest holds the SHA-256 of the tensors' files. Tensors are fp32.

    Args:
        model: A prepared model.
        folder: Made if need be.
        state_dict: Tensors by their names in memory, to be written instead of the model's own (DeepSpeed
            gathers sharded parameters into one). More than the trained ones may be in it.

    Raises:
        CheckpointError: A trained tensor is missing, empty, of another shape or not finite; nothing is written then.
        OutputError: The folder cannot be written to: its disk is full, read-only or gone.
    """
    path = Path(folder)
    if path.is_file():
        raise CheckpointError(f"{path} is a file, a folder is needed")
    tensors = _collect(model, state_dict)
    with writing(path, sum(tensor.nbytes for tensor in tensors.values())):
        _write(model, path, tensors)


def _write(model: VlmLoraPeftModel, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    trainable = model.vlm_lora.trainable
    path.mkdir(parents=True, exist_ok=True)
    of_trainer = (TRAINER_WEIGHTS,) if CHECKPOINT_NAME.fullmatch(path.name) else ()  # elsewhere it is a whole model
    for stale in (COMPLETION, MANIFEST, BASE_WEIGHTS, *of_trainer):
        (path / stale).unlink(missing_ok=True)
    files = {}
    if trainable.of_base():
        files[BASE_WEIGHTS] = write_tensors(path / BASE_WEIGHTS, {p.name: tensors[p.name] for p in trainable.of_base()})
    write_file(path / ADAPTER_CONFIG, _adapter_config(model))
    lora = {PEFT_PREFIX + p.name: tensors[p.name] for p in trainable.of_peft()}
    files[ADAPTER_WEIGHTS] = write_tensors(path / ADAPTER_WEIGHTS, lora)
    write_file(
        path / MANIFEST, replace(model.vlm_lora.manifest, files=files, steps=model.vlm_lora.steps).to_json().encode()
    )


def _collect(model: VlmLoraPeftModel, state_dict: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    source: Mapping[str, torch.Tensor] = model.named_trainables()
    if state_dict is not None:
        source = {canonical_name(name): tensor for name, tensor in state_dict.items()}
    missing, wrong, wild, tensors = [], [], [], {}
    for parameter in model.vlm_lora.trainable.parameters:
        tensor = source.get(parameter.name)
        if tensor is None:
            missing.append(parameter.name)
        elif tuple(tensor.shape) != parameter.shape:
            wrong.append(f"{parameter.name} {tuple(tensor.shape)}")
        else:
            tensors[parameter.name] = tensor.detach().to("cpu", torch.float32).contiguous()
            if not tensors[parameter.name].isfinite().all():
                wild.append(parameter.name)
    if missing:
        raise CheckpointError(
            f"Trained parameters are missing from what is to be saved: {listed(missing)}",
            fix="Give the whole state dict, or none.",
        )
    if wrong:
        raise CheckpointError(
            f"Trained parameters are empty or of another shape: {listed(wrong)}",
            why="Under ZeRO-3 a parameter is empty until it is gathered; saved like this the training would be lost.",
            fix="Set stage3_gather_16bit_weights_on_model_save: true in the DeepSpeed configuration.",
        )
    if wild:
        raise CheckpointError(
            f"Trained parameters are no longer finite, so they are not saved: {listed(wild)}",
            why="A step with a gradient of NaN or infinity made them so; the adapter would answer nonsense.",
            fix="Go on from an earlier checkpoint with a lower learning rate, or in bfloat16 instead of float16.",
        )
    return tensors


def _adapter_config(model: VlmLoraPeftModel) -> bytes:
    config = copy.copy(model.peft_config[ADAPTER_NAME])
    config.inference_mode = True
    config.base_model_name_or_path = config.base_model_name_or_path or model.get_base_model().name_or_path
    with tempfile.TemporaryDirectory() as folder:  # PEFT writes it itself, but not in one step
        config.save_pretrained(folder)
        written = (Path(folder) / ADAPTER_CONFIG).read_bytes()
    if not model.vlm_lora.trainable.of_base():
        return written
    # PEFT passes over a key that it does not know with a warning that names it; a part of an adapter it would take
    # for the whole silently.
    return json.dumps({**json.loads(written), ONLY_WE_READ: BASE_WEIGHTS}, indent=2, sort_keys=True).encode()
