"""One percent on any tensor that the result depends on is a miss, and nothing else is needed to see it."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlm_lora_plugin.testing.comparison import Tolerance
from vlm_lora_plugin.testing.golden import compare_gradients, read_case
from vlm_lora_plugin.testing.golden_comparison import compare_stages
from vlm_lora_plugin.testing.golden_passes import Passes

FOLDER = Path(__file__).parent
SMALL = (
    "monkey/text_only",
    "omnilmm/mixed",
    "omnilmm_more/sizes_in_a_list",
    "xcomposer/khd_text",
    "xcomposer_more/v2_two_images",
)


def passes_of(folder):
    """The case's passes, and what its forward pass is compared with."""
    _, case = read_case(folder)
    case.model.load_state_dict(load_file(case.weights), strict=True)
    case.model.requires_grad_(True)
    tensors = load_file(folder / "expected.safetensors")
    full = {name.removeprefix("grad."): tensor for name, tensor in tensors.items() if name.startswith("grad.")}
    stages = {name: tensor for name, tensor in tensors.items() if not name.startswith("grad.")}
    expected = json.loads((folder / "expected.json").read_text("utf-8"))
    tolerance = Tolerance(case.rtol, case.atol)
    passes = Passes(case.model, dict(case.model.named_parameters()), case.inputs, case.stages, sorted(stages))

    def agrees(passes):
        """Whether a run of the model meets the reference."""
        findings = chain(
            compare_stages(passes, float(expected["loss"]), stages, tolerance),
            compare_gradients(passes, dict.fromkeys(passes.parameters, "all"), expected, full, tolerance),
        )
        return all(finding.passed for finding in findings)

    return passes, agrees


@pytest.mark.parametrize("case", SMALL)
def test_one_percent_on_any_tensor_that_counts_is_a_miss(case):
    passes, agrees = passes_of(FOLDER / case)
    assert agrees(passes)
    # What the loss does not depend on has no gradient, but for rounding: keys' biases, parts that were not reached.
    used = [
        name for name, gradient in passes.double.gradients.items() if gradient is not None and gradient.norm() > 1e-12
    ]
    spread, unnoticed = passes.spread, []
    for name in used:
        tensor = passes.parameters[name]
        kept = tensor.detach().clone()
        with torch.no_grad():
            tensor.mul_(1.01)
        nudged = Passes(passes.model, passes.parameters, passes.inputs, passes.stages, passes.names)
        nudged.__dict__["spread"] = spread  # what rounding explains does not change by a percent
        if agrees(nudged):
            unnoticed.append(name)
        with torch.no_grad():
            tensor.copy_(kept)

    assert len(used) > 10
    assert unnoticed == []
