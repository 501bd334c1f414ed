"""Which of a checkpoint's files a resume needs besides what was trained; a load or a merge needs none of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

TRAINER_STATE = "trainer_state.json"
"""What the Trainer writes of its progress into each checkpoint."""

OPTIMIZER, SCHEDULE, RANDOM, PROGRESS, SCALE = "optimizer", "schedule", "random states", "progress", "loss scale"

NEEDED = (OPTIMIZER, SCHEDULE, RANDOM, PROGRESS)
"""Without one of these another result would come about, without a word."""

_BY_TRAINER: dict[str, tuple[str, ...]] = {
    OPTIMIZER: ("optimizer.pt", "optimizer.bin"),
    SCHEDULE: ("scheduler.pt",),
    RANDOM: ("rng_state.pth", "rng_state_*.pth"),
    PROGRESS: (TRAINER_STATE,),
    SCALE: ("scaler.pt",),
}
_LATEST = "latest"  # the file in which DeepSpeed names the folder of its shards
_OPTIMIZER_SHARDS, _MODEL_SHARDS = "*/*optim_states.pt", "*/*model_states.pt"


def resume_files(names: Iterable[str]) -> dict[str, list[str]]:
    """Return what a resume needs -> the files that hold it, as the Trainer, or DeepSpeed through it, names them.

    Args:
        names: Of all files of a checkpoint, relative to its folder, with ``/``.
    """
    every = sorted(names)

    def matching(*patterns: str) -> list[str]:
        return [name for name in every if any(fnmatchcase(name, pattern) for pattern in patterns)]

    found = {role: matching(*patterns) for role, patterns in _BY_TRAINER.items()}
    if _LATEST in every:
        model = matching(_MODEL_SHARDS)  # holds the schedule too, and without ZeRO the optimizer
        found[OPTIMIZER] += [*(matching(_OPTIMIZER_SHARDS) or model), _LATEST]
        found[SCHEDULE] += model
    return {role: files for role, files in found.items() if files}


def lacking(files: Mapping[str, list[str]]) -> list[str]:
    """Return what a resume needs and :func:`resume_files` did not find."""
    return [role for role in NEEDED if not files.get(role)]
