"""The patches of one model: applied in order, undone in reverse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import nn

from vlm_lora_plugin.contract import Patch


@dataclass
class PatchStack:
    """What was applied to a model, the first patch at the bottom."""

    _applied: list[tuple[Patch, Callable[[], None]]] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the patches, in the order in which they were applied."""
        return tuple(patch.name for patch, _ in self._applied)

    def apply(self, model: nn.Module, patches: Iterable[Patch]) -> None:
        """Apply patches on top, or none of them: what one raises passes on when those before it are undone."""
        height = len(self._applied)
        try:
            for patch in patches:
                self._applied.append((patch, patch.apply(model)))
        except Exception:
            self.undo(height)
            raise

    def undo(self, height: int = 0) -> None:
        """Undo the patches above a height, the last one first."""
        while len(self._applied) > height:
            self._applied.pop()[1]()
