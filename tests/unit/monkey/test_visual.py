from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from torch import nn

from vlm_lora_plugin.models.resampling import PoolAttention, sincos_table, stretch_grid

GOLDEN = Path(__file__).parents[2] / "golden" / "monkey"


@pytest.fixture
def tower(lively):
    return lively.transformer.visual


def tokens_of(tower, pixels):
    """Tokens by view, ``[views, n_queries, dim]``."""
    return tower.encode(pixels)[0].view(5, 4, -1)


@pytest.mark.parametrize("window", range(4))
def test_each_window_has_a_lora_set_of_its_own_and_the_global_view_none(tower, prompts, window):
    pixels = prompts.images(1)
    before = tokens_of(tower, pixels)
    with torch.no_grad():
        for block in tower.transformer.resblocks:
            for sets in (block.attn.in_proj_lora, block.attn.out_proj_lora, block.mlp_lora):
                sets[window].lora_b.weight.mul_(2)
    after = tokens_of(tower, pixels)

    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [view == window for view in range(5)]


def test_windows_are_cut_row_by_row(tower, prompts):
    pixels = prompts.images(1)
    before = tokens_of(tower, pixels)
    pixels[..., :32, 32:] += 1.0
    after = tokens_of(tower, pixels)

    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [False, True, False, False, True]


@pytest.mark.parametrize("part", ["attn.in_proj_lora", "attn.out_proj_lora", "mlp_lora"])
def test_lora_scale_scales_the_update(tower, prompts, part):
    pixels = prompts.images(1)
    sets = [block.get_submodule(part) for block in tower.transformer.resblocks]
    with torch.no_grad():
        for adapter in (adapter for group in sets for adapter in group):
            adapter.lora_scale.fill_(3.0)
        scaled = tower.encode(pixels)
        for adapter in (adapter for group in sets for adapter in group):
            adapter.lora_scale.fill_(1.0)
            adapter.lora_b.weight.mul_(3.0)

    torch.testing.assert_close(tower.encode(pixels), scaled, rtol=1e-4, atol=1e-5)


def test_sincos_table_is_the_published_one():
    published = load_file(GOLDEN / "base" / "weights.safetensors")["transformer.visual.attn_pool.pos_embed"]

    torch.testing.assert_close(sincos_table(*published.shape), published, rtol=0, atol=1e-6)


def test_stretching_a_grid_to_its_own_size_is_free():
    table = torch.randn(16, 3)

    assert stretch_grid(table, 16) is table
    assert stretch_grid(table, 64).shape == (64, 3)


def test_pool_attention_is_multihead_attention():
    reference, ours = nn.MultiheadAttention(32, 2, batch_first=True), PoolAttention(32, 2)
    ours.load_state_dict(reference.state_dict(), strict=True)
    query, key, value = torch.randn(2, 3, 32), torch.randn(2, 5, 32), torch.randn(2, 5, 32)

    torch.testing.assert_close(ours(query, key, value), reference(query, key, value)[0], rtol=1e-5, atol=1e-6)


def test_lora_on_the_pools_output_projection_learns(lively, prompts):
    config = LoraConfig(r=2, target_modules=["attn_pool.attn.out_proj"], init_lora_weights=False)
    inject_adapter_in_model(config, lively)
    inputs = prompts.batch(prompts.row("I", 4))

    lively(**inputs, pixel_values=prompts.images(1), labels=inputs["input_ids"]).loss.backward()

    gradients = {name: p.grad for name, p in lively.named_parameters() if ".lora_A." in name or ".lora_B." in name}
    assert len(gradients) == 2
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())


def test_a_single_window_is_enough(prompts):
    from vlm_lora_monkey.tiny import tiny_model

    model = tiny_model(visual={"image_size": 32, "lora_repeat_num": 1})

    assert model.transformer.visual.encode(torch.randn(1, 3, 32, 32)).shape == (1, 8, 128)


def test_a_tower_as_wide_as_its_output_needs_no_projection():
    from vlm_lora_monkey.tiny import tiny_model

    model = tiny_model(visual={"width": 128})

    assert isinstance(model.transformer.visual.attn_pool.kv_proj, nn.Identity)
    assert model.transformer.visual.encode(torch.randn(1, 3, 64, 64)).shape == (1, 20, 128)
