"""The patches of one model: applied in order, undone in reverse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import nn

from vlm_lora_plugin.contract import Patch
from vlm_lora_plugin.patches.rebinding import functions_of, rebinding


@dataclass
class PatchStack:
    """What was applied to a model, the first patch at the bottom.

    A deep copy of the model computes with its own weights, and the stack's copy undoes the patches there, whatever
    the functions that a patch put into the model close over.
    """

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
                self._applied.append((patch, _rebound(patch, model)))
        except Exception:
            self.undo(height)
            raise

    def undo(self, height: int = 0) -> None:
        """Undo the patches above a height, the last one first."""
        while len(self._applied) > height:
            self._applied.pop()[1]()


def _rebound(patch: Patch, model: nn.Module) -> Callable[[], None]:
    """Apply a patch, let a copy of what it put into the model be the copy's, and return what undoes it."""
    before = {(id(holder), key): holder[key] for holder, key in functions_of(model)}
    undo = patch.apply(model)
    for holder, key in list(functions_of(model)):
        if before.get((id(holder), key)) is not holder[key]:
            holder[key] = rebinding(holder[key], model)
    return rebinding(undo, model)
