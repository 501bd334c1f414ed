"""Names of a checkpoint's files, and writing them whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from vlm_lora_plugin.checkpoint.digests import sha256_of
from vlm_lora_plugin.errors import CheckpointError

if TYPE_CHECKING:
    import torch

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's config of the LoRA part."""

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""PEFT's LoRA tensors and nothing else, under PEFT's names; empty when a recipe trains no PEFT LoRA."""

BASE_WEIGHTS = "base_trainables.safetensors"
"""The base model's own trained parameters under their published names; absent when there are none."""

ONLY_WE_READ = f"vlm_lora_plugin.load_adapter reads {BASE_WEIGHTS}, PEFT alone does not"
"""Key of PEFT's config where there are such parameters."""

MANIFEST = "vlm_lora_manifest.json"
"""Written last of what was trained: a folder without it is incomplete."""

COMPLETION = "vlm_lora_complete.json"
"""Written last of a Trainer's checkpoint, after optimizer and state; what was saved by itself has none."""

TRAINER_WEIGHTS = "model.safetensors"
"""In a Trainer's checkpoint of a model that it holds without PEFT's wrapper: all that was trained once more, by
the names in memory, because the Trainer resumes such a model from nothing else."""

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
"""Name of a Trainer's checkpoint folder; the number is its step."""


def write_file(path: Path, content: bytes) -> str:
    """Write a file under a temporary name, then put it in place in one step.

    Returns:
        The SHA-256 of the content as hex, computed while the disk is waited for.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(sha256_of, content)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return digest.result()


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write a safetensors file whole or not at all, and return its SHA-256 as hex."""
    from safetensors.torch import save  # brings torch: `train` refuses much before it is needed

    return write_file(path, save(dict(tensors), metadata={"format": "pt"}))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file onto the CPU.

    Raises:
        CheckpointError: It is missing, truncated or no safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", fix="Use a complete copy of the checkpoint.")
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}",
            why="It is truncated or no safetensors file.",
            fix="Use a complete copy of the checkpoint.",
        ) from None
    return tensors
