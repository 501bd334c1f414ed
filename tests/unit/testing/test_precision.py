from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vlm_lora_plugin.testing.golden_passes import Passes
from vlm_lora_plugin.testing.precision import UNIT_ROUNDOFF, RandomRounding, double_precision, in_double

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.float(),
        lambda x: x.to(torch.float32),
        lambda x: x.type(torch.float32),
        lambda x: F.softmax(x, -1, dtype=torch.float32),
        lambda x: x + torch.arange(3, dtype=torch.float32),
        lambda x: x + torch.ones(3),
    ],
)
def test_what_asks_for_fp32_gets_fp64(ask):
    x = torch.randn(2, 3, dtype=torch.float64, generator=GENERATOR)
    with double_precision() as mode:
        assert ask(x).dtype == torch.float64
    assert not mode.narrowed
    assert torch.get_default_dtype() == torch.float32


def test_what_leaves_fp64_all_the_same_is_named():
    with double_precision() as mode:
        torch.ones(2).bfloat16()
    assert mode.narrowed == {"bfloat16"}


def test_inputs_are_widened_wherever_they_stand():
    given = in_double({"ids": torch.ones(2, dtype=torch.int64), "images": [torch.ones(1)], "pair": (torch.ones(1), 3)})
    assert given["ids"].dtype == torch.int64
    assert given["images"][0].dtype == given["pair"][0].dtype == torch.float64


def rounded(function, *tensors, seed=0):
    with RandomRounding(seed):
        return function(*tensors)


def test_random_rounding_is_of_the_size_of_fp32s():
    a, b = (torch.randn(200, 200, dtype=torch.float64, generator=GENERATOR) for _ in range(2))
    exact, real = a @ b, (a.float() @ b.float()).double()
    made = (rounded(torch.mm, a, b) - exact).square().mean().sqrt()
    # To err like fp32 to an order of magnitude, and never to err less.
    assert 1 < made / (real - exact).square().mean().sqrt() < 30
    assert (rounded(torch.exp, a) / a.exp() - 1).abs().max() <= UNIT_ROUNDOFF * 1.01


def test_random_rounding_reaches_the_backward_pass_and_repeats_by_seed():
    x = torch.randn(20, 20, dtype=torch.float64, generator=GENERATOR).requires_grad_()

    def gradient(seed):
        with RandomRounding(seed):
            return torch.autograd.grad((x @ x).softmax(-1).square().sum(), x)[0]

    assert torch.equal(gradient(1), gradient(1))
    assert not torch.equal(gradient(1), gradient(2))


def test_inputs_stay_and_masks_do_not_overflow():
    x = torch.randn(4, dtype=torch.float64, generator=GENERATOR)
    mask = torch.tensor([0.0, torch.finfo(torch.float64).min, 0.0, 0.0], dtype=torch.float64)
    before = x.clone()
    assert rounded(lambda: (x + mask).softmax(-1)).isfinite().all()
    assert torch.equal(x, before)


class Coarse(torch.nn.Linear):
    """Computes in fp32 what it computes in fp64, but for an error that rounding does not make."""

    error = 0.0

    def forward(self, x):
        return super().forward(x) * (1 + (self.error if x.dtype == torch.float32 else 0.0))


@pytest.mark.parametrize(("error", "passed"), [(0.0, True), (1e-3, False)])
def test_an_fp32_pass_that_is_off_by_more_than_rounding_is_a_miss(error, passed):
    from types import SimpleNamespace

    from vlm_lora_plugin.testing.comparison import Tolerance
    from vlm_lora_plugin.testing.golden_comparison import compare_single

    model = Coarse(16, 16)
    model.error = error

    def stages(model, inputs, names):
        out = model(inputs["x"])
        return SimpleNamespace(loss=out.square().mean()), {"out": out}

    passes = Passes(
        model, dict(model.named_parameters()), {"x": torch.randn(3, 16, generator=GENERATOR)}, stages, ["out"]
    )
    findings = {finding.what: finding.passed for finding in compare_single(passes, Tolerance(1e-5, 1e-6))}
    assert findings == dict.fromkeys(("fp32: loss", "fp32: out", "fp32: gradients: elements of 2"), passed)
    assert model.weight.dtype == torch.float32
