"""The sizes that families state are those of their model as published."""

import pytest
import torch
from torch import nn

from vlm_lora_plugin.manager import get_manager
from vlm_lora_plugin.recipe import resolve_recipe
from vlm_lora_plugin.selection.resolve import resolve_selection
from vlm_lora_plugin.zero.arithmetic import means_by_component, published_load, trainable_elements
from vlm_lora_plugin.zero.plan import counted_load, counted_means

PRESETS = ["lora", "lora-only", "lora+llm", "lora+llm-lora"]


@pytest.fixture(scope="module")
def family():
    return get_manager().family("monkey")


@pytest.fixture(scope="module")
def config():
    from vlm_lora_monkey.configuration import PUBLISHED_VISUAL, MonkeyConfig

    return MonkeyConfig(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        kv_channels=128,
        intermediate_size=22016,
        vocab_size=151936,
        seq_length=2048,
        max_position_embeddings=8192,
        visual=PUBLISHED_VISUAL,
    )


@pytest.fixture(scope="module")
def model(config):
    from vlm_lora_monkey.modeling import MonkeyForCausalLM

    with torch.device("meta"):
        return MonkeyForCausalLM(config).to(torch.bfloat16)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_load_is_the_one_counted_in_the_model(family, model, preset):
    recipe = resolve_recipe(preset, family)
    trainables = resolve_selection(model, family, recipe)
    assert published_load(recipe, family.size) == counted_load(model, trainables)
    learning = {name: means for name, means in means_by_component(recipe).items() if means != "frozen"}
    assert learning == counted_means(trainables)


@pytest.mark.parametrize("means", ["full", "lora"])
@pytest.mark.parametrize("component", ["vision", "aligner", "language", "embeddings", "head"])
def test_each_component_has_its_stated_trainable_elements(family, model, component, means):
    size = family.size.components[component]
    expected = trainable_elements(size, means, 8)
    if expected == 0:
        assert (component, means) == ("embeddings", "lora")
        return
    recipe = resolve_recipe({"components": {component: means}, "lora": {"r": 8}}, family)
    assert sum(p.numel for p in resolve_selection(model, family, recipe).parameters) == expected


def test_largest_tensors_blocks_widths_and_tokens(family, model, config):
    sizes = family.size.components
    assert max(part.largest for part in sizes.values()) == max(p.numel() for p in model.parameters())
    assert (sizes["vision"].blocks, sizes["vision"].width) == (config.vision.layers, config.vision.width)
    assert (sizes["language"].blocks, sizes["language"].width) == (config.num_hidden_layers, config.hidden_size)
    assert family.size.vocabulary == config.vocab_size
    assert family.size.tokens_per_image == config.image_token_span
    patches = (config.vision.window_size // config.vision.patch_size) ** 2
    assert sizes["vision"].positions_per_image == config.vision.windows * patches
    assert sizes["aligner"].positions_per_image == (config.vision.windows + 1) * patches


def kept(block, *inputs):
    """Bytes that autograd keeps of one call, each storage once, parameters left out."""
    own = {parameter.untyped_storage()._cdata for parameter in block.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        block(*inputs)
    return sum(size for size, _ in storages.values())


def per_position(make, width, lengths=(32, 64)):
    """Bytes for each position: the slope between two lengths, which leaves out copies of weights."""
    counts = []
    for positions in lengths:
        block, more = make(positions)
        hidden = torch.randn(1, positions, width, dtype=torch.bfloat16, requires_grad=True)
        counts.append(kept(block, hidden, *more))
    return (counts[1] - counts[0]) / (lengths[1] - lengths[0])


def halved(block: nn.Module, learns: str) -> nn.Module:
    block = block.to(torch.bfloat16).train()
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(learns in name)
        if learns in name:
            parameter.data = parameter.data.float()
    return block


@pytest.mark.slow
def test_a_vision_block_keeps_the_stated_bytes(family, config):
    from vlm_lora_monkey.visual import VisualBlock

    block = halved(VisualBlock(config.vision), "lora_")
    assert per_position(lambda positions: (block, (0,)), 1664) == pytest.approx(
        family.size.components["vision"].kept_per_position, rel=0.02
    )


@pytest.mark.slow
def test_the_resampler_keeps_the_stated_bytes(family, config):
    from vlm_lora_monkey.visual import Resampler

    pool = Resampler(config.vision).train()
    pool.pos_embed.requires_grad_(False)

    stated = family.size.components["aligner"].kept_per_position
    assert per_position(lambda positions: (pool, ()), 1664, (64, 256)) == pytest.approx(stated, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("learns", "key"), [("lora_", "kept_per_position"), ("nothing", "passed_per_position")])
def test_a_language_block_keeps_the_stated_bytes(family, config, learns, key):
    from peft import LoraConfig, inject_adapter_in_model

    from vlm_lora_monkey.language import MonkeyBlock, rotary_tables

    block = MonkeyBlock(config, 0)
    if learns == "lora_":
        targets = ["attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2"]
        inject_adapter_in_model(LoraConfig(r=16, lora_dropout=0.05, target_modules=targets), block)
    block = halved(block, learns)

    def with_positions(positions):
        return block, (rotary_tables(torch.arange(positions)[None], 128, 10000.0, 1.0),)

    stated = getattr(family.size.components["language"], key)
    assert per_position(with_positions, 4096) == pytest.approx(stated, rel=0.02)
