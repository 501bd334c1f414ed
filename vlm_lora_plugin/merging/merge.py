"""From a base model's folder and an adapter to one plain checkpoint, as if the base had been trained itself."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm_lora_plugin.checkpoint.disk import writing
from vlm_lora_plugin.contract.example import IMAGE_MARK, Example, Message
from vlm_lora_plugin.errors import CheckpointError, WeightsError
from vlm_lora_plugin.loading import load
from vlm_lora_plugin.merging.new_folder import check_room, new_folder
from vlm_lora_plugin.merging.plain import copy_settings, write_shards
from vlm_lora_plugin.models.weights import tensor_names, tensor_shapes, weight_files
from vlm_lora_plugin.names import ADAPTER_NAME, PEFT_PREFIX, canonical_name
from vlm_lora_plugin.prepared.preparation import load_trained

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Processor

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of a logit, relative to the largest logit: in 16 bit the merged weights are rounded."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        folder: The merged checkpoint.
        dtype: Of its tensors.
        tensors: Tensors in it.
        folded: Layers that LoRA was folded into.
        size: Bytes of its weights.
        error: Largest difference of a logit between the adapter's model and the reloaded merged one, divided
            by the largest magnitude of a logit.
        difference: The same, not divided.
    """

    folder: Path
    dtype: torch.dtype
    tensors: int
    folded: int
    size: int
    error: float
    difference: float


def merge_adapter(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    output: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    *,
    take_over: bool = False,
) -> MergeReport:
    """Write a plain full checkpoint in the base's layout, with everything that was trained in it.

    PEFT's LoRA is folded into its layers in fp32. LoRA that the model itself carries, and weights that were
    trained in full, take the place of the base's. Settings and tokenizer files of the base are copied; code
    is not, and nothing refers to any. The folder is written under a temporary name, reloaded, compared with
    the adapter's model on one image and one text, and only then put in place.

    Args:
        base: The base model's folder.
        adapter: A folder that ``save_pretrained`` or the Trainer wrote.
        output: The new folder; must not exist.
        dtype: Dtype of the merged weights, or None for the one the base is stored in.
        take_over: Take the place from another merge that seems to be at work on it.

    Raises:
        OutputError: ``output`` exists already, another merge is at work on it, or it cannot be written.
        CheckpointError: The adapter is broken or belongs to another base, or the reloaded model differs.
        ModelError: ``base`` is of no known family.
        WeightsError: The base's weights are broken.
    """
    base, output = Path(base), Path(output)
    needed = _size(base, dtype)
    check_room(output, needed)
    with new_folder(output, take_over=take_over) as temporary, writing(output.parent, needed, then="merge again"):
        written = _write(base, adapter, temporary, dtype)
        error, difference = _compare(temporary, written)
    return MergeReport(output, written.dtype, written.tensors, written.folded, written.size, error, difference)


def _size(base: Path, dtype: torch.dtype | None) -> int:
    """Return the bytes that a model's weights need at least; 0 where they cannot be read, which loading says better."""
    try:
        if dtype is None:
            return sum(file.stat().st_size for file in weight_files(base))
        return sum(math.prod(shape) for shape in tensor_shapes(base).values()) * dtype.itemsize
    except (OSError, WeightsError):
        return 0


@dataclass(frozen=True)
class _Written:
    """What was written, and what the adapter's model answers to some inputs."""

    dtype: torch.dtype
    tensors: int
    folded: int
    size: int
    inputs: dict[str, torch.Tensor]
    logits: torch.Tensor


def _write(base: Path, adapter: str | os.PathLike[str], folder: Path, dtype: torch.dtype | None) -> _Written:
    loaded, processor = load(base, dtype=dtype)
    dtype = loaded.dtype
    model = load_trained(loaded, adapter)
    inputs = _probe(processor)
    logits = _logits(model, inputs)
    modules = dict(model.named_modules())
    layers = {f"{layer}.weight": modules[PEFT_PREFIX + layer] for layer in model.vlm_lora.trainable.lora_targets}
    peft = {parameter.name for parameter in model.vlm_lora.trainable.of_peft()}
    state = {canonical_name(name): tensor for name, tensor in model.state_dict().items()}
    names = _layout({name: tensor for name, tensor in state.items() if name not in peft}, tensor_names(base))

    def merged(name: str) -> torch.Tensor:
        tensor = state[name] if name not in layers else _folded(layers[name])
        return tensor.to("cpu", dtype if tensor.is_floating_point() else None, copy=True).contiguous()

    size = write_shards(folder, names, merged)
    copy_settings(base, folder, dtype)
    return _Written(dtype, len(names), len(layers), size, inputs, logits)


def _layout(state: Mapping[str, torch.Tensor], published: frozenset[str]) -> list[str]:
    """Return the names to write: the base's own, and LoRA that its files lack; a tied tensor as often as there."""
    held = {state[name].data_ptr() for name in published if name in state}
    return [name for name, tensor in state.items() if name in published or tensor.data_ptr() not in held]


@torch.no_grad()
def _folded(layer: Any) -> torch.Tensor:
    """Return the weight of a PEFT layer with its LoRA in it, ``[out, in]`` in fp32."""
    weight: torch.Tensor = layer.get_base_layer().weight.float() + layer.get_delta_weight(ADAPTER_NAME).float()
    if layer.use_dora[ADAPTER_NAME]:
        magnitude = layer.lora_magnitude_vector[ADAPTER_NAME].weight
        weight = weight * (magnitude / torch.linalg.norm(weight, dim=1))[:, None]
    return weight


def _probe(processor: Processor) -> dict[str, torch.Tensor]:
    """Return a batch of one row with a made-up image and one without."""
    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "PNG")
    examples = [
        Example((Message("user", f"{IMAGE_MARK}What is this?"), Message("assistant", "A test.")), (file.getvalue(),)),
        Example((Message("user", "What is this?"), Message("assistant", "A test."))),
    ]
    batch = processor.collate([processor.encode(example) for example in examples])
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


@torch.no_grad()
def _logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    model.eval()
    logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits.float()


def _compare(folder: Path, written: _Written) -> tuple[float, float]:
    """Reload what was written and return how far its logits are off, relatively and absolutely."""
    merged, _ = load(folder)
    dtype = merged.dtype
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):  # as the adapter's model computes
        actual = _logits(merged, written.inputs)
    difference = float((actual - written.logits).abs().max())
    error = difference / float(written.logits.abs().max())
    if dtype != written.dtype or not error <= TOLERANCE[dtype]:
        raise CheckpointError(
            f"The logits of the merged checkpoint in {dtype}, reloaded, differ from the adapter's model by up to "
            f"{difference:.1e}, relative to the largest logit {error:.1e}; at most {TOLERANCE[dtype]:.0e} was expected",
            why="It would give other answers than the model that was trained. Nothing was kept.",
            fix="Merge with --dtype fp32, and report this if it differs there too.",
        )
    return error, difference
