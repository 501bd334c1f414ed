"""What is compared of every golden pass, with LoRA and without: loss and stages, and fp32 with fp64."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial

import torch

from vlm_lora_plugin.errors import listed
from vlm_lora_plugin.testing.comparison import (
    Finding,
    Tolerance,
    agreement,
    compare_number,
    compare_tensors,
    miss,
    worst,
)
from vlm_lora_plugin.testing.golden_passes import Passes, Results


def compare_narrowing(results: Results) -> Finding:
    """Find a miss where an fp64 pass left fp64 on the way, as it would then say little about the model."""
    kept = {
        name for name, tensor in results.stages.items() if tensor.is_floating_point() and tensor.dtype != torch.float64
    }
    narrowed = sorted({*results.narrowed, *kept})
    return miss("fp64", f"narrowed by {listed(narrowed)}") if narrowed else agreement("fp64", "to the end")


def compare_stages(
    passes: Passes, loss: float, tensors: Mapping[str, torch.Tensor], tolerance: Tolerance, prefix: str = ""
) -> Iterator[Finding]:
    """Compare loss and stages of the fp64 pass with the references."""
    double = passes.double
    yield compare_number(f"{prefix}loss", double.loss.item(), loss, abs(loss), tolerance, lambda: passes.spread.loss)
    for name, tensor in sorted(tensors.items()):
        if name not in double.stages:
            yield miss(f"{prefix}{name}", "not computed")
            continue
        spread = partial(passes.stage_spread, name)
        yield compare_tensors(f"{prefix}{name}", double.stages[name], tensor, tolerance, spread)


def compare_single(
    passes: Passes,
    tolerance: Tolerance,
    component_of: Mapping[str, str] | None = None,
    prefix: str = "fp32: ",
) -> Iterator[Finding]:
    """Compare the fp32 pass with the fp64 pass: loss, stages, and each gradient element by element.

    Args:
        passes: Of the model.
        tolerance: What the references are held to.
        component_of: Groups the gradients; None is one group.
        prefix: Before each title.
    """
    single, double = passes.single, passes.double
    loss = double.loss.item()
    yield compare_number(f"{prefix}loss", single.loss.item(), loss, abs(loss), tolerance, lambda: passes.spread.loss)
    for name in sorted(double.stages):
        spread = partial(passes.stage_spread, name)
        yield compare_tensors(f"{prefix}{name}", single.stages[name], double.stages[name], tolerance, spread)
    groups: defaultdict[str, list[Finding]] = defaultdict(list)
    for name, gradient in double.gradients.items():
        ours = single.gradients[name]
        if gradient is None or ours is None:
            same = gradient is ours
            finding = agreement(name, "") if same else miss(name, "has a gradient in one of fp32 and fp64 alone")
        else:
            finding = compare_tensors(name, ours, gradient, tolerance, partial(passes.gradient_spread, name))
        groups[f", {component_of[name]}" if component_of else ""].append(finding)
    for part, findings in groups.items():
        yield worst(findings, f"{prefix}gradients{part}: elements of {len(findings)}")
