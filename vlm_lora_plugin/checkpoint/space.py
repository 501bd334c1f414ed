"""Whether the checkpoints that a run is going to write fit on the disk, asked before it trains."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from vlm_lora_plugin.checkpoint.disk import free_bytes, in_words
from vlm_lora_plugin.errors import OutputError

_FP32 = 4  # bytes of a trained element: all are saved in fp32
_STATES = {"adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2, "adafactor": 0, "sgd": 0}
"""Optimizer -> bytes of its states for each trained element, the least that it can be."""

_LONGEST = "/checkpoints/incomplete-checkpoint-00000000/vlm_lora_manifest.json.tmp-00000000"
"""The longest path that is going to be made in an output folder."""


@dataclass(frozen=True)
class Saves:
    """What a run writes.

    Attributes:
        elements: Trained elements.
        optimizer: Name of the optimizer, as the Trainer knows it.
        steps: Optimizer steps of the whole run.
        every: Steps between checkpoints; 0 for none.
        limit: Checkpoints that are kept; None for all.
        states: Whether a checkpoint holds the optimizer's states.
    """

    elements: int
    optimizer: str
    steps: int
    every: int
    limit: int | None
    states: bool = True

    @property
    def checkpoint(self) -> int:
        """Bytes of one checkpoint, at least."""
        return self.elements * (_FP32 + (self._states if self.states else 0))

    @property
    def kept(self) -> int:
        """Checkpoints that lie on the disk at a time: an old one is deleted once the new one is complete."""
        written = math.ceil(self.steps / self.every) if self.every else 0
        return written if self.limit is None else min(written, self.limit + 1)

    @property
    def total(self) -> int:
        """Bytes on the disk at the worst moment, the adapter at the end included."""
        return self.kept * self.checkpoint + self.elements * _FP32

    @property
    def _states(self) -> int:
        if self.optimizer in _STATES:
            return _STATES[self.optimizer]
        return 2 * _FP32 if "adam" in self.optimizer else 0


def check_space(folder: Path, saves: Saves, *, there: int = 0) -> None:
    """Refuse a run whose checkpoints are not going to fit.

    Args:
        folder: Where they go; need not exist yet.
        saves: What is going to be written.
        there: Bytes of it that are written already, or that are freed when it begins.

    Raises:
        OutputError: Says what is needed and what is free.
    """
    free, needed = free_bytes(folder), saves.total - there
    if needed <= free:
        return
    many = "1 checkpoint" if saves.kept == 1 else f"{saves.kept} checkpoints"
    raise OutputError(
        f"The results do not fit on the disk of {folder}: {many} of {in_words(saves.checkpoint)} and the adapter need "
        f"{in_words(needed)}, {in_words(free)} are free",
        why="The run would stop at a checkpoint that cannot be written.",
        fix="Free space, give another folder, or lower training.save_total_limit (kept at a time, beside the one being "
        "written) or raise training.save_steps.",
    )


def check_names(folder: Path) -> None:
    """Refuse a folder whose path leaves no room for the names of what is going to be written into it.

    Raises:
        OutputError: Names the limit.
    """
    existing = next((path for path in folder.absolute().parents if _exists(path)), Path("/"))
    if not hasattr(os, "pathconf"):
        return
    name_most, path_most = os.pathconf(existing, "PC_NAME_MAX"), os.pathconf(existing, "PC_PATH_MAX")
    longest = max((len(os.fsencode(part)) for part in folder.absolute().parts), default=0)
    whole = len(os.fsencode(str(folder.absolute()) + _LONGEST))
    if longest > name_most or whole > path_most:
        what, most, has = ("name", name_most, longest) if longest > name_most else ("path", path_most, whole)
        raise OutputError(
            f"The name of the output folder is too long: a {what} may have {most} bytes, {has} are needed",
            fix="Give a folder with a shorter name.",
        )


def _exists(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
