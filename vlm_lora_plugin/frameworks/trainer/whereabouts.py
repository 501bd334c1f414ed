"""How far this rank's Trainer is, for the ranks that wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vlm_lora_plugin.parallel.agreement import several_ranks
from vlm_lora_plugin.parallel.heartbeat import now_in

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerState


class Whereabouts:
    """Notes the parts of each step of a run of several ranks, by hooks on the model; nothing in a process alone.

    Args:
        module: The module that the framework calls.
        state: The Trainer's, whose step is noted.
    """

    def __init__(self, module: nn.Module, state: TrainerState) -> None:
        self._state = state
        self._hooks: list[Any] = []
        if several_ranks():
            self._hooks = [
                module.register_forward_pre_hook(self._before_forward),
                module.register_forward_hook(self._after_forward),
            ]

    def note(self, doing: str) -> None:
        """Note what all ranks now do, after the number of the step."""
        now_in(f"step {self._state.global_step + 1}, {doing}")

    def close(self) -> None:
        """Take the hooks off the model."""
        while self._hooks:
            self._hooks.pop().remove()

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if module.training and torch.is_grad_enabled():
            self.note("forward pass")

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if module.training and torch.is_grad_enabled():
            self.note("backward pass")
