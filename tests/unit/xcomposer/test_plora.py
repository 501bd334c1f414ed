"""Partial LoRA: image tokens alone, and PEFT's LoRA on top of it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn import functional as F

from vlm_lora_xcomposer.configuration import PLoraSettings
from vlm_lora_xcomposer.language import rotary_of
from vlm_lora_xcomposer.lora import PLoraLinear


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = PLoraLinear(6, 10, PLoraSettings(4, 8, 0.0))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.eval()


@pytest.fixture
def x():
    return torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))


MASK = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 0, 1]]).bool()[..., None]


def test_image_tokens_alone_get_the_scaled_update(layer, x):
    plain = F.linear(x, layer.weight)
    update = 2.0 * x @ layer.Plora_A.weight.T @ layer.Plora_B.weight.T

    torch.testing.assert_close(layer(x, image_mask=MASK), torch.where(MASK, plain + update, plain))


def test_without_images_it_is_the_linear_layer(layer, x):
    assert torch.equal(layer(x), F.linear(x, layer.weight))


def test_dropout_acts_in_front_of_the_partial_lora_in_training_alone(x):
    layer = PLoraLinear(6, 10, PLoraSettings(4, 8, 0.5))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    layer.eval()
    assert torch.equal(layer(x, image_mask=MASK), layer(x, image_mask=MASK))
    layer.train()
    torch.manual_seed(0)
    first = layer(x, image_mask=MASK)
    torch.manual_seed(1)
    second = layer(x, image_mask=MASK)
    assert not torch.equal(first[MASK.squeeze(-1)], second[MASK.squeeze(-1)])
    assert torch.equal(first[~MASK.squeeze(-1)], second[~MASK.squeeze(-1)])


def wrapped(layer, **settings):
    model = nn.ModuleDict({"wqkv": layer})
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6, init_lora_weights=False, **settings), model)
    return model["wqkv"]


def test_pefts_lora_hands_the_mask_on(layer, x):
    expected = layer(x, image_mask=MASK)
    lora = wrapped(layer, target_modules=["wqkv"])
    down, up = lora.lora_A["default"].weight, lora.lora_B["default"].weight

    torch.testing.assert_close(lora(x, image_mask=MASK), expected + 3.0 * x @ down.T @ up.T)


def test_merging_pefts_lora_leaves_the_partial_lora_as_it_is(layer, x):
    partial = [layer.Plora_A.weight.clone(), layer.Plora_B.weight.clone()]
    lora = wrapped(layer, target_modules=["wqkv"])
    before = lora(x, image_mask=MASK)
    lora.merge()

    torch.testing.assert_close(lora(x, image_mask=MASK), before, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer.Plora_A.weight, partial[0])
    assert torch.equal(layer.Plora_B.weight, partial[1])


def test_it_holds_no_linear_layer_that_all_linear_could_adapt(layer):
    assert [name for name, module in layer.named_modules() if isinstance(module, nn.Linear)] == [""]


def test_frozen_16_bit_weights_meet_fp32_ones(layer, x):
    layer.to(torch.bfloat16)
    layer.Plora_A.weight.data = layer.Plora_A.weight.data.float()

    out = layer(x.bfloat16(), image_mask=MASK)
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def test_a_block_asks_the_device_nothing(lively):
    """On the meta device there are no values, so any question about them is an error."""
    model = lively()
    block, config = model.model.layers[0].to("meta"), model.config
    hidden = torch.empty(2, 5, config.hidden_size, device="meta", requires_grad=True)
    mask = torch.empty(2, 5, 1, dtype=torch.bool, device="meta")
    rotary = rotary_of(torch.empty(2, 5, dtype=torch.int64, device="meta"), config, 5)
    block(hidden, rotary, image_mask=mask).sum().backward()
    assert hidden.grad.shape == hidden.shape
