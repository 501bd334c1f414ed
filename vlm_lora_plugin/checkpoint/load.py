"""Reading back what was trained, strictly."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vlm_lora_plugin.checkpoint.digests import changed_files
from vlm_lora_plugin.checkpoint.files import ADAPTER_WEIGHTS, BASE_WEIGHTS, MANIFEST, read_tensors
from vlm_lora_plugin.checkpoint.manifest_file import read_manifest
from vlm_lora_plugin.documents import differences
from vlm_lora_plugin.errors import CheckpointError, listed
from vlm_lora_plugin.models.keyed_init import fresh_lora_of
from vlm_lora_plugin.names import PEFT_PREFIX
from vlm_lora_plugin.parallel.sharding import put_full
from vlm_lora_plugin.selection.base_bytes import byte_differences, byte_digests, dtype_of
from vlm_lora_plugin.selection.base_weights import base_digests, weight_differences
from vlm_lora_plugin.selection.manifest import Manifest, base_config, part_differences, trainable_differences

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from vlm_lora_plugin.prepared.model import VlmLoraPeftModel

_HALVES = {"bfloat16", "float16"}


def restore(model: VlmLoraPeftModel, folder: str | os.PathLike[str]) -> None:
    """Load a checkpoint into a model that was prepared with its recipe.

    Everything is read and checked before the first parameter changes.

    Raises:
        CheckpointError: The folder is incomplete, broken, or of another recipe or base model.
    """
    stored = read_manifest(folder)
    check_fits(model, stored, folder)
    tensors = _read_all(Path(folder), stored)
    parameters = model.named_trainables()
    with torch.no_grad():
        for name, parameter in parameters.items():
            put_full(parameter, tensors[name])
    take_history(model, stored)


def take_history(model: VlmLoraPeftModel, stored: Manifest) -> None:
    """Let a model's own manifest tell the steps and the lineage of the checkpoint that is loaded into it.

    A resumed run needs it also where an engine, or the Trainer itself, loads the tensors.
    """
    own = model.vlm_lora
    own.steps, own.manifest = stored.steps, replace(own.manifest, lineage=stored.lineage)


def check_fits(model: VlmLoraPeftModel, stored: Manifest, folder: str | os.PathLike[str]) -> None:
    """Check that a checkpoint belongs to a prepared model: the same base, trainable set and meaning of LoRA.

    The base's weights are compared by digest: a sample of them where both are known in one dtype, and every byte where
    they are stored in one, or can be rounded to it.

    Raises:
        CheckpointError: It does not; the message shows the difference key by key.
    """
    own = model.vlm_lora.manifest
    check_base(stored, model.get_base_model().config, folder)
    parts = part_differences(stored, own)
    if parts:
        raise CheckpointError(
            f"{folder} was trained on a model with other parts (checkpoint / model): {listed(parts)}",
            why="A rule for one of these parts would mean other parameters now than it did then.",
            fix="Use the version of the family's plugin that it was trained with.",
        )
    different = trainable_differences(stored, own)
    if different:
        raise CheckpointError(
            f"{folder} was trained with another recipe (checkpoint / model): {listed(different)}",
            why="It holds other parameters than the model trains, or the same ones with another meaning.",
            fix="Prepare the model with the recipe in the checkpoint's manifest.",
        )
    other = weight_differences(stored.base_weights, _weights_as(model, stored.dtype))
    other = other or byte_differences(stored.base_bytes, _bytes_as(model, stored.base_bytes))
    if other:
        raise CheckpointError(
            f"{folder} was trained beside other weights than this base model's, in: {', '.join(other)}",
            why="The architecture is the same, but what was trained fits the weights that it was trained with.",
            fix="Load the base model that the adapter was trained on: the same release, not trained further or merged.",
        )


def _weights_as(model: VlmLoraPeftModel, dtype: str) -> Mapping[str, str] | None:
    """Return the digests of a prepared model's base in another dtype; None where that one was wider."""
    own = model.vlm_lora
    if own.manifest.dtype == dtype:
        return own.manifest.base_weights
    if own.manifest.dtype != "float32" or own.manifest.base_weights is None:
        return None
    base = model.get_base_model()
    leave_out = {*fresh_lora_of(base), *own.trainable.names}
    return base_digests(base, own.trainable.architecture.components, leave_out, dtype)


def _bytes_as(model: VlmLoraPeftModel, stored: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return the digests of every byte of a prepared model's base; in the dtype of others, where that one is wider."""
    own = model.vlm_lora.manifest.base_bytes
    if stored is None or own is None:
        return own
    theirs, ours = ({dtype_of(digest) for digest in digests.values()} for digests in (stored, own))
    if theirs == ours or len(theirs) != 1 or not theirs <= _HALVES:
        return own
    base = model.get_base_model()
    leave_out = {*fresh_lora_of(base), *model.vlm_lora.trainable.names}
    return byte_digests(base, model.vlm_lora.trainable.architecture.components, leave_out, theirs.pop())


def check_base(stored: Manifest, config: PreTrainedConfig, folder: str | os.PathLike[str]) -> None:
    """Check that a checkpoint was trained on a base of the same architecture.

    Raises:
        CheckpointError: It was not; the message shows the difference key by key.
    """
    different = differences(stored.base_config, base_config(config))
    if different:
        raise CheckpointError(
            f"{folder} was trained on another base model (checkpoint / model): {listed(different)}",
            fix="Load the base model that the adapter was trained on.",
        )


def _read_all(folder: Path, manifest: Manifest) -> dict[str, torch.Tensor]:
    with ThreadPoolExecutor(1) as pool:  # files are hashed while they are read, compared and turned into tensors
        hashing = pool.submit(changed_files, folder, manifest.files or {})
        tensors = _read_tensors(folder, manifest)
    changed = hashing.result()
    if changed:
        raise CheckpointError(
            f"{folder} holds other files than were written: {listed(changed)}",
            why=f"Their SHA-256 is not the one in {MANIFEST}: bits have flipped, or they are another run's.",
            fix="Use an unchanged copy of the checkpoint.",
        )
    return tensors


def _read_tensors(folder: Path, manifest: Manifest) -> dict[str, torch.Tensor]:
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
        "not finite": [name for name in wanted if name in found and not found[name].isfinite().all()],
    }
    for problem, names in problems.items():
        if names:
            raise CheckpointError(
                f"{file}: tensors {problem}: {listed(names)}",
                fix="Use an unchanged copy of the checkpoint.",
            )
