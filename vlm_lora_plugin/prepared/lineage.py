"""A run that starts from what another one trained, and says so in its manifest."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lora_plugin.checkpoint.digests import sha256_of, sha256_of_files
from vlm_lora_plugin.checkpoint.files import ADAPTER_WEIGHTS, BASE_WEIGHTS, MANIFEST
from vlm_lora_plugin.checkpoint.manifest_file import read_manifest
from vlm_lora_plugin.selection.manifest import Ancestor

if TYPE_CHECKING:
    from vlm_lora_plugin.prepared.model import VlmLoraPeftModel


def start_from(model: VlmLoraPeftModel, folder: str | os.PathLike[str]) -> None:
    """Load what an adapter trained into a freshly prepared model, which goes on training it as a run of its own.

    The model's manifest then tells the adapter's lineage and, after it, the adapter itself: its digest and its steps.

    Args:
        model: Prepared with a recipe that trains the same parameters.
        folder: A folder that ``save_pretrained`` or the Trainer wrote.

    Raises:
        CheckpointError: The folder is incomplete, broken, or of another recipe or base model.
    """
    model.load_adapter(folder, is_trainable=True)
    stored = read_manifest(folder)
    own = model.vlm_lora
    own.manifest = replace(own.manifest, lineage=(*stored.lineage, ancestor(folder)))
    own.steps = None


def ancestor(folder: str | os.PathLike[str]) -> Ancestor:
    """Return what a child's manifest says of an adapter.

    Raises:
        CheckpointError: The folder holds none, or a broken one.
    """
    return Ancestor(adapter_digest(folder), read_manifest(folder).steps)


def adapter_digest(folder: str | os.PathLike[str]) -> str:
    """Return the SHA-256 over those of an adapter's files by name: its manifest and the tensors that were trained."""
    path = Path(folder)
    names = [name for name in (MANIFEST, ADAPTER_WEIGHTS, BASE_WEIGHTS) if (path / name).is_file()]
    return sha256_of(json.dumps(sha256_of_files(path, names), sort_keys=True).encode())
