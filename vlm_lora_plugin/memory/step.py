"""One training step of a prepared model without values: what it keeps, and what it needs at its peak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.memory.cuda_rules import CudaRules
from vlm_lora_plugin.memory.live_bytes import LiveBytes, Moment, Use
from vlm_lora_plugin.memory.parts import parts_noted
from vlm_lora_plugin.memory.valueless import fake_batch, put_fakes

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.vocabulary import Component

FROZEN, TRAINABLE, BUFFERS = Use("frozen weights"), Use("trainable weights"), Use("buffers")
GRADIENTS, STATES, INPUTS = Use("gradients"), Use("optimizer states"), Use("inputs")
STATIC = (FROZEN, TRAINABLE, BUFFERS, STATES)
"""What is alive in every moment of training."""


@dataclass(frozen=True)
class StepMemory:
    """The memory of one step, in bytes.

    Attributes:
        peak: The moment when most is alive.
        static: Weights, buffers and the optimizer's states.
        saved: What is saved for the backward pass when the forward pass ends, by the part that made it; the empty name
            is what no part made.
        curve: ``(operations so far, phase, bytes)`` through the step.
        operations: Operations called.
        inner: Operations that take memory inside, which is not counted, and how often they were called.
    """

    peak: Moment
    static: int
    saved: Mapping[str, int]
    curve: Sequence[tuple[int, str, int]]
    operations: int
    inner: Mapping[str, int]

    @property
    def moving(self) -> int:
        """What the peak holds above :attr:`static`."""
        return self.peak.bytes - self.static


Optimizer = Callable[[list["nn.Parameter"]], torch.optim.Optimizer]


def fused_adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return what the Trainer makes of ``optim: adamw_torch_fused``, its default."""
    return torch.optim.AdamW(parameters, fused=True)


def trace_step(
    model: nn.Module,
    batch: Mapping[str, Any],
    components: Sequence[Component],
    *,
    cuda: bool = True,
    accumulates: bool = True,
    optimizer: Optimizer = fused_adamw,
) -> StepMemory:
    """Run one step without values and count what is alive.

    It is a step in the middle of training: the optimizer has its states, and with ``accumulates`` there are gradients
    of an earlier micro-batch.

    Args:
        model: A prepared model on the meta device, see
            :func:`vlm_lora_plugin.prepared.preparation.prepare_outline`. It is of no use afterwards.
        batch: What its ``forward`` takes, ``labels`` among it. Integers must have values; floats may be on the meta
            device.
        components: The parts of the model.
        cuda: Save what operations save on a CUDA device; False is what they save on the CPU.
        accumulates: Whether gradients of an earlier micro-batch are there already.
        optimizer: Makes the optimizer of the parameters that learn.

    Raises:
        ModelError: The model has values, or makes no loss of this batch.
        PlanError: An operation's memory cannot be told.
    """
    device = torch.device("cpu")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    put_fakes(model, mode, device)
    model.train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    live = LiveBytes(device)
    _count_static(model, live)
    with mode:
        stepping = optimizer(learning)
        _make_states(stepping, learning, live, keep_gradients=accumulates)
    given = fake_batch(batch, mode, device)
    for value in given.values():
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(tensor, torch.Tensor):
                live.add(tensor, INPUTS)
    static = sum(live.uses().get(use, 0) for use in STATIC)
    rules = CudaRules() if cuda else nullcontext()
    with (
        parts_noted(model, components, live),
        _gradients_noted(learning, live),
        mode,
        live,
        rules,
        _generator_states_counted(live, counted=not cuda),
    ):
        live.phase = "forward"
        loss = _loss(model, given)
        saved = _saved(live)
        live.phase, live.component = "backward", ""
        _backward(loss)
        del loss
        live.phase, live.component = "optimizer", ""
        stepping.step()
        stepping.zero_grad(set_to_none=True)
    return StepMemory(live.peak, static, saved, tuple(live.curve), live.operations, dict(live.inner))


def _count_static(model: nn.Module, live: LiveBytes) -> None:
    for parameter in model.parameters():
        live.add(parameter, TRAINABLE if parameter.requires_grad else FROZEN)
    for buffer in model.buffers():
        live.add(buffer, BUFFERS)


def _make_states(
    optimizer: torch.optim.Optimizer, learning: Sequence[nn.Parameter], live: LiveBytes, *, keep_gradients: bool
) -> None:
    """Take a first step, so that the optimizer has its states."""
    for parameter in learning:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                live.add(value, STATES)
    for parameter in learning:
        if keep_gradients and parameter.grad is not None:
            live.add(parameter.grad, GRADIENTS)
        else:
            parameter.grad = None


def _loss(model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    loss = getattr(model(**batch), "loss", None)
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        raise ModelError(
            f"{type(model).__name__} makes no loss of this batch that anything could learn from",
            fix="Give rows with labels, and a recipe that trains something they reach.",
        )
    return loss


def _backward(loss: torch.Tensor) -> None:
    """Run the backward pass below function modes: ``loss.backward()`` would take them off for as long as it runs."""
    torch.autograd.graph._engine_run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _saved(live: LiveBytes) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for use, size in live.uses().items():
        if use.kind == "forward":
            sizes[use.component] += size
    return dict(sizes)


@contextmanager
def _gradients_noted(learning: Sequence[nn.Parameter], live: LiveBytes) -> Iterator[None]:
    def arrived(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            live.reassign(parameter.grad, GRADIENTS)

    handles = [
        parameter.register_post_accumulate_grad_hook(arrived)  # type: ignore[no-untyped-call]
        for parameter in learning
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _generator_states_counted(live: LiveBytes, *, counted: bool) -> Iterator[None]:
    """Count the random states that checkpointing keeps, one for each call; PyTorch makes them past all dispatch.

    They are on the host, so on a CUDA device they are not part of the step's memory.
    """
    plain = torch.get_rng_state

    def seen() -> torch.Tensor:
        state = plain()
        live.add(state)
        return state

    if counted:
        torch.get_rng_state = seen
    try:
        yield
    finally:
        torch.get_rng_state = plain
