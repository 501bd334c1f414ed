"""Which folder was meant, where the one that was given holds something else of a job."""

from __future__ import annotations

import os
from pathlib import Path

from vlm_lora_plugin.checkpoint.files import CHECKPOINT_NAME, COMPLETION, MANIFEST
from vlm_lora_plugin.errors import CheckpointError

_ADAPTER, _CHECKPOINTS, _TRAINER_STATE = "adapter", "checkpoints", "trainer_state.json"


def folder_with_adapter(folder: str | os.PathLike[str]) -> Path | None:
    """Return the folder near a given one that holds what was trained: in a job's folder, or around a folder in it."""
    path = Path(folder)
    near = (path / _ADAPTER, *_checkpoints(path / _CHECKPOINTS), *_checkpoints(path), path.parent)
    return next((found for found in near if (found / MANIFEST).is_file()), None)


def refuse_adapter(folder: str | os.PathLike[str]) -> None:
    """Refuse to resume from a folder that holds what was trained and no state of the Trainer; name the checkpoint.

    Raises:
        CheckpointError: It is one.
    """
    path = Path(folder)
    if not (path / MANIFEST).is_file() or any((path / name).is_file() for name in (COMPLETION, _TRAINER_STATE)):
        return
    around = (path.parent, *_checkpoints(path.parent / _CHECKPOINTS), *_checkpoints(path.parent))
    whole = next((found for found in around if (found / COMPLETION).is_file()), None)
    anew = "model.load_adapter(folder, is_trainable=True), and train() without resume_from_checkpoint"
    raise CheckpointError(
        f"{folder} holds what was trained, and not where the Trainer was",
        why="A run goes on with its optimizer, schedule and random states, which lie in a checkpoint-N only.",
        fix=f"Resume from {whole}, or start anew from its weights: {anew}."
        if whole
        else f"Start anew from its weights: {anew}.",
    )


def _checkpoints(folder: Path) -> list[Path]:
    """Return the ``checkpoint-N`` in a folder, the newest first."""
    try:
        names = [match for entry in folder.iterdir() if (match := CHECKPOINT_NAME.fullmatch(entry.name))]
    except OSError:
        return []
    return [folder / match[0] for match in sorted(names, key=lambda match: int(match[1]), reverse=True)]
