"""Is everything that should learn really learning? Gradients in the first steps, and movement after some."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from vlm_lora_plugin.diagnostics.fingerprint import fingerprint, largest, local
from vlm_lora_plugin.diagnostics.learning_causes import SEEING, image_gradient_cut, no_gradient, not_finite, not_moved
from vlm_lora_plugin.models.loss import IGNORED
from vlm_lora_plugin.names import canonical_name
from vlm_lora_plugin.parallel.optimizer import held_parameters
from vlm_lora_plugin.parallel.sharding import own_numel

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.prepared.model import VlmLoraPeftModel
    from vlm_lora_plugin.selection.trainables import Trainable

MOVED_AFTER = 10
"""Steps with a rate after which a group must have moved."""

LEAST_RATE = 1e-6
"""Sum of the rates of these steps below which fp32 may rightly show no movement yet."""

MOST_SKIPPED = 50
"""Steps in a row that a loss scale may skip: it halves each time, and starts at 2^16."""

_FOLLOWER = re.compile(r"(?P<stem>.*lora_)(?P<part>a|scale)(?P<end>\.weight)?", re.IGNORECASE)


class LearningProbe:
    """Watches one run of a prepared model, by hooks on its tensors, until everything has been seen to learn.

    Over the first accumulation window with an image every gradient must be finite, that of each LoRA up
    projection non-zero, and in each group of other parameters at least one. A LoRA down projection or scale
    must have a gradient as soon as its up projection is no longer zero. After ``MOVED_AFTER`` steps with a
    rate every group must have moved. Windows of text alone prove nothing about the image side, and steps
    that a loss scale skips prove nothing at all.

    Args:
        prepared: The prepared model.
        module: The module that the framework calls: the same, or its base.
    """

    def __init__(self, prepared: VlmLoraPeftModel, module: nn.Module) -> None:
        self._entries = {entry.name: entry for entry in prepared.vlm_lora.trainable.parameters}
        self._architecture = prepared.vlm_lora.trainable.architecture
        self._tensors: Mapping[str, torch.Tensor] = prepared.named_trainables()
        everything = {canonical_name(name): tensor for name, tensor in prepared.named_parameters()}
        # A weight of the base is none, whatever its name: XComposer's Plora_A and Plora_B come with the checkpoint.
        low_rank = [name for name, entry in self._entries.items() if entry.kind != "full"]
        self._leaders = {name: up for name in low_rank if (up := _up_of(name, everything)) is not None}
        self._tiny = torch.finfo(prepared.vlm_lora.dtype).tiny
        self._unproven = set(self._entries)
        here = [entry.group for name, entry in self._entries.items() if own_numel(self._tensors[name])]
        self._unmoved: dict[str, tuple[int, float]] = dict.fromkeys(here, (0, 0.0))
        self._before = {name: fingerprint(tensor) for name, tensor in self._tensors.items()}
        self._gradients: dict[str, torch.Tensor] = {}
        self._has_image = False
        self._grown: set[str] = set()
        self._rates: dict[str, float] = {}
        self._skipped = 0
        self._forward = module.register_forward_hook(self._on_forward, with_kwargs=True)
        self._hooks = [
            tensor.register_hook(partial(self._on_gradient, name))  # type: ignore[no-untyped-call]
            for name, tensor in self._tensors.items()
            if tensor.requires_grad  # the optimizer's check names one that does not
        ]

    @property
    def done(self) -> bool:
        """Whether everything has been seen to learn."""
        return not self._unproven and not self._unmoved

    def before_step(self, optimizer: Any) -> None:
        """Note the rates of the window's step; called before the schedule goes on to the next."""
        self._rates = self._group_rates(optimizer)

    def after_step(self, *, skipped: bool) -> None:
        """Judge the window that has just ended.

        Args:
            skipped: The step was not taken, because a loss scale made gradients overflow.

        Raises:
            TrainingError: Something does not learn.
        """
        gradients, self._gradients = self._gradients, {}
        has_image, self._has_image = self._has_image, False
        self._skipped = self._skipped + 1 if skipped else 0
        if skipped and self._skipped <= MOST_SKIPPED:
            return
        if self._unproven and (has_image or skipped):
            self._judge_gradients(gradients)
        self._judge_movement(has_image)
        if not self._unproven:
            self._remove_hooks()
        if self.done:
            self.close()

    def close(self) -> None:
        """Take every hook off the model."""
        self._remove_hooks()
        self._forward.remove()

    def _remove_hooks(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _on_forward(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        """Notice a micro-batch with an image whose loss counts."""
        if self._has_image or not module.training or not torch.is_grad_enabled():
            return
        labels = kwargs.get("labels")
        if labels is None or not self._architecture.count_images(kwargs) or not bool((labels[:, 1:] != IGNORED).any()):
            return
        self._has_image = True
        if self._unproven:  # noted here, because DeepSpeed takes its step before any callback is asked
            values = {up: local(up_tensor) for up, up_tensor in self._leaders.values()}
            sizes = torch.stack([largest(value).float().cpu() for value in values.values()]) if values else ()
            self._grown = {up for up, size in zip(values, sizes, strict=True) if float(size) > self._tiny}
        loss = getattr(output, "loss", None)
        if loss is not None and not loss.requires_grad:
            raise image_gradient_cut()

    def _on_gradient(self, name: str, gradient: torch.Tensor) -> None:
        size = largest(gradient)
        known = self._gradients.get(name)
        self._gradients[name] = size if known is None else torch.maximum(known, size)

    def _judge_gradients(self, gradients: Mapping[str, torch.Tensor]) -> None:
        sizes = {name: float(size) for name, size in gradients.items()}
        window = "over the first steps with an image"
        wild = [name for name, size in sizes.items() if not size < float("inf")]
        if wild:
            raise not_finite(wild, window)
        alive = {name for name, size in sizes.items() if size > 0}
        groups = {self._entries[name].group for name in alive if not self._is_lora(name)}
        dead: list[Trainable] = []
        for name in [name for name in self._entries if name in self._unproven]:
            entry = self._entries[name]
            waits = name in self._leaders and self._leaders[name][0] not in self._grown
            learns = name in alive or (not self._is_lora(name) and entry.group in groups)
            if learns:
                self._unproven.discard(name)
            elif not waits:
                dead.append(entry)
        if dead:
            raise no_gradient(dead, [self._entries[name] for name in alive], sizes.keys(), window)

    def _judge_movement(self, has_image: bool) -> None:
        for group, (steps, total) in list(self._unmoved.items()):
            members = [name for name, entry in self._entries.items() if entry.group == group]
            rate = self._rates.get(group, 0.0)
            if rate == 0 or (not has_image and any(self._entries[name].component in SEEING for name in members)):
                continue
            self._unmoved[group] = steps, total = steps + 1, total + rate
            if steps < MOVED_AFTER or total < LEAST_RATE:
                continue
            if all(torch.equal(fingerprint(self._tensors[name]), self._before[name]) for name in members):
                raise not_moved(group, members, steps, total)
            del self._unmoved[group]

    def _is_lora(self, name: str) -> bool:
        if self._entries[name].kind == "full":
            return False
        return name in self._leaders or re.search(r"lora_b(\.weight)?$", name, re.IGNORECASE) is not None

    def _group_rates(self, optimizer: Any) -> dict[str, float]:
        """Return the rate of the step by group; of tensors that the optimizer does not hold, its highest."""
        by_tensor = {id(tensor): group["lr"] for tensor, group in held_parameters(optimizer)}
        highest = max((float(rate) for rate in by_tensor.values()), default=0.0)
        rates: dict[str, float] = {}
        for name, entry in self._entries.items():
            rate = float(by_tensor.get(id(self._tensors[name]), highest))
            rates[entry.group] = max(rates.get(entry.group, 0.0), rate)
        return rates


def _up_of(name: str, tensors: Mapping[str, torch.Tensor]) -> tuple[str, torch.Tensor] | None:
    """Return the up projection without which a LoRA down projection or scale gets no gradient, or None."""
    match = _FOLLOWER.fullmatch(name)
    if match is None:
        return None
    up = match["stem"] + ("B" if match["part"] == "A" else "b")
    return next(((found, tensors[found]) for found in (f"{up}.weight", up) if found in tensors), None)


def step_was_skipped(optimizer: Any) -> bool:
    """Return whether accelerate or DeepSpeed skipped the last step for its loss scale."""
    return bool(getattr(optimizer, "step_was_skipped", False))
