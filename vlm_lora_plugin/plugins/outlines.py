"""The model of a folder on the meta device, built once for each config in a process and before ranks meet."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from vlm_lora_plugin.errors import TrainingError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Key: TypeAlias = tuple[str, Path, frozenset[tuple[str, int, int]], str | None]
"""Family, folder, name with size and time of each file in it, variant."""


def key_of(family: str, folder: Path, variant: str | None) -> Key:
    """Return what tells one config from another, without reading it."""
    files = ((entry, entry.stat()) for entry in folder.iterdir())
    state = frozenset((entry.name, stat.st_size, stat.st_mtime_ns) for entry, stat in files)
    return family, folder.resolve(), state, variant


def ranks_have_met() -> bool:
    """Return whether this process belongs to a process group. Imports no torch."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and bool(distributed.is_initialized())


@dataclass
class _Outline:
    key: Key
    model: PreTrainedModel
    as_built: bool


class Outlines:
    """Keeps the newest outline."""

    def __init__(self) -> None:
        self._newest: _Outline | None = None

    def get(self, key: Key, build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """Return the model behind a key in whichever dtype it has; only the newest is kept.

        Args:
            key: From :func:`key_of`.
            build: Builds it on the meta device.

        Raises:
            TrainingError: It would have to be built now, and this process belongs to a process group already.
        """
        return self._get(key, build).model

    def in_dtype(self, key: Key, build: Callable[[], PreTrainedModel], dtype: torch.dtype | None) -> PreTrainedModel:
        """Return it with parameters of a dtype; None for the one that it is built in.

        Raises:
            TrainingError: As in :meth:`get`.
        """
        if dtype is None and self._newest is not None and not self._newest.as_built:
            self._newest = None
        kept = self._get(key, build)
        if dtype is not None and any(tensor.dtype != dtype for tensor in kept.model.parameters()):
            kept.model.to(dtype)  # type: ignore[arg-type]  # the library wraps it untyped
            kept.model.config.dtype = dtype
            kept.as_built = False
        return kept.model

    def _get(self, key: Key, build: Callable[[], PreTrainedModel]) -> _Outline:
        kept = self._newest
        if kept is None or kept.key != key:
            if ranks_have_met():
                raise TrainingError(
                    f"The outline of {key[1]} would be built after a process group was made",
                    why="Under ZeRO-3 its parameters would come as shards, and names and shapes would be wrong.",
                    fix="Resolve the recipe first, and hand on what comes out: before TrainingArguments, Accelerator() "
                    "and init_process_group call resolve_recipe(recipe, family, architecture=...) or TrainJob.check().",
                )
            kept = self._newest = _Outline(key, build(), as_built=True)
        return kept

    def forget(self, family: str) -> None:
        """Drop what a family built."""
        if self._newest is not None and self._newest.key[0] == family:
            self._newest = None
