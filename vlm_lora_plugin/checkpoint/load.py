"""Reading back what was trained, strictly."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vlm_lora_plugin.checkpoint.files import ADAPTER_WEIGHTS, BASE_WEIGHTS, MANIFEST, read_tensors
from vlm_lora_plugin.errors import CheckpointError, ModelError, listed
from vlm_lora_plugin.selection.manifest import Manifest, config_digest
from vlm_lora_plugin.selection.names import PEFT_PREFIX

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vlm_lora_plugin.prepared_model import VlmLoraPeftModel

_LORA_KEYS = ("lora_alpha", "use_rslora", "use_dora")
"""Settings of LoRA that change what its tensors mean without changing their shapes."""


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
    from peft import PeftModel

    from vlm_lora_plugin.loading import load_model
    from vlm_lora_plugin.manager import get_manager
    from vlm_lora_plugin.preparation import prepare

    manifest = read_manifest(folder)
    if isinstance(base, PeftModel):
        raise ModelError(
            "The base of an adapter must be the plain model, not one with PEFT layers",
            fix="Load the base model again, or call load_adapter(folder) of the prepared model.",
        )
    dtype = getattr(torch, manifest.dtype)
    model = load_model(Path(base), dtype=dtype) if isinstance(base, (str, os.PathLike)) else base
    family = get_manager().family_of_model(model).name
    if family != manifest.family:
        raise CheckpointError(f"{folder} belongs to the family {manifest.family}, the base model is {family}")
    _check_base(manifest, config_digest(model.config), folder)
    prepared = prepare(model, dict(manifest.recipe))
    prepared.load_adapter(folder, is_trainable=is_trainable)
    if not is_trainable:
        prepared.requires_grad_(False)
    return prepared


def restore(model: VlmLoraPeftModel, folder: str | os.PathLike[str]) -> None:
    """Load a checkpoint into a model that was prepared with its recipe.

    Everything is read and checked before the first parameter changes.

    Raises:
        CheckpointError: The folder is incomplete, broken, or of another recipe or base model.
    """
    stored, own = read_manifest(folder), model.vlm_lora.manifest
    _check_base(stored, own.base_digest, folder)
    if stored.digest != own.digest:
        names, here = {p.name for p in stored.parameters}, {p.name for p in own.parameters}
        changed = listed(sorted(names ^ here)) if names != here else "the same names, other shapes or means"
        raise CheckpointError(
            f"{folder} holds another trainable set than the model was prepared for: {changed}",
            fix="Prepare the model with the recipe in the checkpoint's manifest.",
        )
    if model.vlm_lora.trainable.of_peft():
        lora, wanted = stored.recipe["lora"], own.recipe["lora"]
        other = [f"{key} {lora[key]} / {wanted[key]}" for key in _LORA_KEYS if lora[key] != wanted[key]]
        if other:
            raise CheckpointError(
                f"{folder} was trained with other LoRA settings (checkpoint / model): {', '.join(other)}",
                why="The same tensors would give other results.",
                fix="Prepare the model with the recipe in the checkpoint's manifest.",
            )
    tensors = _read_all(Path(folder), stored)
    parameters = model.named_trainables()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        CheckpointError: There is no such folder, it has no manifest, or the manifest is broken.
    """
    path = Path(folder) / MANIFEST
    if not path.parent.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {path.parent}")
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} has no {MANIFEST}",
            why="Saving it was interrupted, or it was not written by this package.",
            fix="Use an earlier checkpoint.",
        )
    return Manifest.from_json(path.read_text("utf-8"), source=str(path))


def _check_base(manifest: Manifest, digest: str, folder: str | os.PathLike[str]) -> None:
    if manifest.base_digest != digest:
        raise CheckpointError(
            f"{folder} was trained on another base model: the configs differ",
            fix="Load the base model that the adapter was trained on.",
        )


def _read_all(folder: Path, manifest: Manifest) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file, prefix, of_peft in ((ADAPTER_WEIGHTS, PEFT_PREFIX, True), (BASE_WEIGHTS, "", False)):
        wanted = {prefix + p.name: p.shape for p in manifest.parameters if (p.kind == "peft_lora") == of_peft}
        if wanted or of_peft:
            found = read_tensors(folder / file)
            _check_tensors(found, wanted, folder / file)
            tensors.update({name.removeprefix(prefix): tensor for name, tensor in found.items()})
    return tensors


def _check_tensors(found: Mapping[str, torch.Tensor], wanted: Mapping[str, tuple[int, ...]], file: Path) -> None:
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "not in the manifest": sorted(found.keys() - wanted.keys()),
        "of another shape": [name for name in wanted if name in found and tuple(found[name].shape) != wanted[name]],
        "not fp32": [name for name in wanted if name in found and found[name].dtype != torch.float32],
    }
    for problem, names in problems.items():
        if names:
            raise CheckpointError(
                f"{file}: tensors {problem}: {listed(names)}",
                fix="Use an unchanged copy of the checkpoint.",
            )
