"""The passes of a golden case: once in fp32, once in fp64, and in fp64 with random rounding where that is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from vlm_lora_plugin.testing.precision import RandomRounding, double_precision, in_double

SAMPLES = 8
"""Passes with random rounding; with fewer, a value whose errors come from one place may be measured small by chance."""

Stages = Callable[[PreTrainedModel, Mapping[str, Any], Sequence[str]], tuple[Any, Mapping[str, torch.Tensor]]]


@dataclass(frozen=True)
class Results:
    """What one pass gave.

    Attributes:
        loss: Scalar, in the pass's dtype.
        stages: The tensors of the forward pass that the case names.
        gradients: Of each parameter; None where it got none.
        narrowed: Functions that left fp64 in an fp64 pass.
    """

    loss: torch.Tensor
    stages: Mapping[str, torch.Tensor]
    gradients: Mapping[str, torch.Tensor | None]
    narrowed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Spread:
    """How far random rounding carried an fp64 pass, as root mean squares over the samples.

    Attributes:
        loss: Of the loss.
        stages: Of each floating-point stage, by vector of its last dimension (kept with size 1).
        gradients: The same of each gradient.
        norms: Of the Euclidean distance between the gradients.
        dots: Of each gradient's :func:`dot_with_cosines`.
    """

    loss: float
    stages: Mapping[str, torch.Tensor]
    gradients: Mapping[str, torch.Tensor]
    norms: Mapping[str, float]
    dots: Mapping[str, float]


@dataclass
class Passes:
    """The passes of one model over one batch, each made when it is first asked for.

    The model is left in fp32, and its gradients cleared.

    Attributes:
        model: In fp32.
        parameters: Those whose gradients are of interest, by name.
        inputs: Of its forward.
        stages: As :class:`~vlm_lora_plugin.contract.GoldenCase` has it.
        names: The stages wanted.
    """

    model: PreTrainedModel
    parameters: Mapping[str, torch.nn.Parameter]
    inputs: Mapping[str, Any]
    stages: Stages
    names: Sequence[str]

    @cached_property
    def single(self) -> Results:
        """The pass in fp32, on this machine."""
        return self._run()

    @cached_property
    def double(self) -> Results:
        """The pass in fp64, the same on every machine but for its last digits."""
        return self.in_double()

    @cached_property
    def spread(self) -> Spread:
        """What rounding in fp32 explains; takes :data:`SAMPLES` more passes."""
        exact = self.double
        runs = [self.in_double(RandomRounding(seed)) for seed in range(SAMPLES)]
        stages = {
            name: _vectors([run.stages[name] - tensor for run in runs])
            for name, tensor in exact.stages.items()
            if tensor.is_floating_point()
        }
        changes = {
            name: [_dense(run.gradients[name], gradient) - gradient for run in runs]
            for name, gradient in exact.gradients.items()
            if gradient is not None
        }
        dots = {name: torch.stack([dot_with_cosines(c) for c in change]) for name, change in changes.items()}
        return Spread(
            loss=_root_mean_square(torch.stack([run.loss - exact.loss for run in runs])),
            stages=stages,
            gradients={name: _vectors(change) for name, change in changes.items()},
            norms={
                name: _root_mean_square(torch.stack([c.norm() for c in change])) for name, change in changes.items()
            },
            dots={name: _root_mean_square(values) for name, values in dots.items()},
        )

    def stage_spread(self, name: str) -> torch.Tensor:
        """Return how far rounding carries a stage."""
        return self.spread.stages[name]

    def gradient_spread(self, name: str) -> torch.Tensor:
        """Return how far rounding carries the elements of a gradient; 0 where the exact pass has none."""
        return self.spread.gradients.get(name, torch.zeros(()))

    def norm_spread(self, name: str) -> float:
        """Return how far rounding carries a gradient as a whole."""
        return self.spread.norms.get(name, 0.0)

    def dot_spread(self, name: str) -> float:
        """Return how far rounding carries a gradient's dot product with cosines."""
        return self.spread.dots.get(name, 0.0)

    def in_double(self, rounding: RandomRounding | None = None) -> Results:
        """Make a pass in fp64, with random rounding or exact."""
        self.model.double()
        try:
            with ExitStack() as stack:
                mode = stack.enter_context(double_precision())
                if rounding is not None:
                    stack.enter_context(rounding)
                results = self._run(in_double(self.inputs))
        finally:
            self.model.zero_grad(set_to_none=True)
            self.model.float()  # to the last bit what it was
        return Results(results.loss, results.stages, results.gradients, frozenset(mode.narrowed))

    def _run(self, inputs: Mapping[str, Any] | None = None) -> Results:
        self.model.zero_grad(set_to_none=True)
        output, stages = self.stages(self.model, self.inputs if inputs is None else inputs, self.names)
        output.loss.backward()
        gradients = {name: parameter.grad for name, parameter in self.parameters.items()}
        self.model.zero_grad(set_to_none=True)
        return Results(output.loss.detach(), {name: tensor.detach() for name, tensor in stages.items()}, gradients)


def dot_with_cosines(gradient: torch.Tensor) -> torch.Tensor:
    """Return the sum of the flattened gradient times cos(0), cos(1), ... as an fp64 scalar, as references hold it."""
    flat = gradient.double().flatten()
    return (flat * torch.arange(len(flat), dtype=torch.float64).cos()).sum()


def _dense(gradient: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _vectors(changes: Sequence[torch.Tensor]) -> torch.Tensor:
    squares = torch.stack([change.square() for change in changes]).mean(0)
    return (squares.mean(-1, keepdim=True) if squares.ndim else squares).sqrt()


def _root_mean_square(values: torch.Tensor) -> float:
    return values.square().mean().sqrt().item()
