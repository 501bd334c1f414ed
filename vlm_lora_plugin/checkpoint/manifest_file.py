"""Reading a checkpoint's manifest. Importing this imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from vlm_lora_plugin.checkpoint.files import MANIFEST
from vlm_lora_plugin.checkpoint.hints import folder_with_adapter
from vlm_lora_plugin.errors import CheckpointError
from vlm_lora_plugin.outside.files import read_text, reason
from vlm_lora_plugin.selection.manifest import Manifest


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        CheckpointError: There is no such folder, it has no manifest, or the manifest is broken.
    """
    path = Path(folder) / MANIFEST
    if not path.parent.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {path.parent}")
    if not path.is_file():
        meant = folder_with_adapter(path.parent)
        raise CheckpointError(
            f"{path.parent} has no {MANIFEST}",
            why="Saving it was interrupted, or it was not written by this package.",
            fix=f"What was trained is in {meant}: give that folder."
            if meant
            else "Use an earlier checkpoint; load_adapter takes the base model first, the adapter's folder second."
            if not (path.parent / "config.json").is_file()
            else "This is a model folder: load_adapter takes the base model first, the adapter's folder second.",
        )
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from None
    return Manifest.from_json(text, source=str(path))
