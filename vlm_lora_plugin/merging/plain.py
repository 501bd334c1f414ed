"""Writing a plain checkpoint folder: safetensors in shards, and settings without code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vlm_lora_plugin.errors import DuplicateKeyError, ModelError
from vlm_lora_plugin.outside.json_text import read_json

SHARD_BYTES = 4 * 2**30
"""Largest size of one weight file, unless a single tensor is larger; also what is in memory at a time."""

_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"}
_CODE_SUFFIXES = {".py", ".pyc", ".so", ".sh", ".ipynb", ".pkl", ".pickle"}
_DTYPE_KEYS = ("dtype", "torch_dtype")


def write_shards(
    folder: Path,
    names: Sequence[str],
    tensor: Callable[[str], torch.Tensor],
    limit: int = SHARD_BYTES,
) -> int:
    """Write tensors as ``model.safetensors``, or as shards with an index when they are larger than the limit.

    Args:
        folder: Where to.
        names: What to write, in this order.
        tensor: Gives the tensor of a name, on the CPU; asked once for each, one shard at a time.
        limit: Bytes of one shard.

    Returns:
        Bytes written, headers not counted.
    """
    pending: dict[str, torch.Tensor] = {}
    shards: list[list[str]] = []
    total = held = 0

    def flush() -> None:
        nonlocal held
        save_file(pending, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()
        held = 0

    for name in names:
        value = tensor(name)
        if pending and held + value.nbytes > limit:
            flush()
        pending[name] = value
        held += value.nbytes
        total += value.nbytes
    flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return total
    index: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        index.update(dict.fromkeys(names, file))
    document = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return total


def copy_settings(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Copy a model folder's files that are neither weights nor code; hidden files and folders are left out.

    ``auto_map``, which would ask for code, is dropped from JSON files, and ``config.json`` names the dtype.
    """
    for file in sorted(source.iterdir()):
        suffixes = set(file.suffixes)
        if not file.is_file() or file.name.startswith(".") or file.name.endswith(".index.json"):
            continue
        if suffixes & (_WEIGHT_SUFFIXES | _CODE_SUFFIXES):
            continue
        document = _json_object(file)
        if document is None or not ("auto_map" in document or file.name == "config.json"):
            shutil.copyfile(file, target / file.name)
            continue
        document.pop("auto_map", None)
        if file.name == "config.json":
            for key in [key for key in _DTYPE_KEYS if key in document] or ["dtype"]:
                document[key] = str(dtype).removeprefix("torch.")
        (target / file.name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _json_object(file: Path) -> dict[str, Any] | None:
    if file.suffix != ".json":
        return None
    try:
        document = read_json(file)
    except DuplicateKeyError as error:
        raise ModelError(f"{file}: {error}", fix="Download the model again.") from None
    except (OSError, ValueError):  # not for us to judge: it is copied as it is
        return None
    return document if isinstance(document, dict) else None
