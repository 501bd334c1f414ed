"""The sizes that families state are those of their model as published."""

import pytest
import torch
from kept_bytes import halved, per_position, with_lora

from vlm_lora_plugin.errors import SelectionError
from vlm_lora_plugin.planning.memory import means_by_component, published_counts, trainable_elements
from vlm_lora_plugin.planning.plan import parameter_counts
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.selection.layout import Layout
from vlm_lora_plugin.selection.resolve import resolve_selection
from vlm_lora_plugin.selection.trainables import counted_means
from vlm_lora_plugin.vocabulary import COMPONENT_NAMES

FAMILIES = ("monkey", "omnilmm", "xcomposer")
PRESETS = [(name, preset) for name in FAMILIES for preset in get_manager().family(name).presets]
BY_PATTERN = {("xcomposer", "lora+separators"): 8192, ("xcomposer", "full-llm"): 8192}
"""Elements that a preset trains by name rather than by component, which the closed formula leaves out."""


def monkey():
    from vlm_lora_monkey.configuration import PUBLISHED_VISUAL, MonkeyConfig
    from vlm_lora_monkey.modeling import MonkeyForCausalLM

    return MonkeyForCausalLM, MonkeyConfig(
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


def omnilmm():
    from vlm_lora_omnilmm.configuration import OmniLMMConfig
    from vlm_lora_omnilmm.modeling import OmniLMMForCausalLM

    return OmniLMMForCausalLM, OmniLMMConfig(hidden_size=4096, vocab_size=32009, num_query=64)


def xcomposer():
    from vlm_lora_xcomposer.configuration import XComposerConfig
    from vlm_lora_xcomposer.modeling import XComposerForCausalLM

    return XComposerForCausalLM, XComposerConfig(variant="xcomposer2_4khd")


@pytest.fixture(scope="module")
def models():
    found = {}
    for published in (monkey, omnilmm, xcomposer):
        model_class, config = published()
        with torch.device("meta"):
            found[published.__name__] = model_class(config).to(torch.bfloat16)
    return found


def size_of(name):
    return get_manager().family(name).size


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_a_presets_load_is_the_one_counted_in_the_model(models, name, preset):
    family = get_manager().family(name)
    recipe = resolve_recipe(preset, family)
    trainables = resolve_selection(models[name], family, recipe)
    stated, counted = published_counts(recipe, family.size), parameter_counts(models[name], trainables)
    by_pattern = BY_PATTERN.get((name, preset), 0)
    assert counted.trainable == stated.trainable + by_pattern
    assert counted.frozen == stated.frozen - by_pattern
    assert (counted.largest, counted.bytes_per_frozen) == (stated.largest, stated.bytes_per_frozen)
    learning = {name: means for name, means in means_by_component(recipe).items() if means != "frozen"}
    assert learning == {name: means for name, means in counted_means(trainables).items() if name in learning}


@pytest.mark.parametrize("means", ["full", "lora"])
@pytest.mark.parametrize("component", COMPONENT_NAMES)
@pytest.mark.parametrize("name", FAMILIES)
def test_each_component_has_its_stated_trainable_elements(models, name, component, means):
    family = get_manager().family(name)
    expected = trainable_elements(family.size.components[component], means, 8)
    recipe = resolve_recipe({"components": {component: means}, "lora": {"r": 8}}, family)
    if expected == 0:
        with pytest.raises(SelectionError, match="no linear layer"):
            resolve_selection(models[name], family, recipe)
        return
    assert sum(p.numel for p in resolve_selection(models[name], family, recipe).parameters) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_and_largest_tensors_are_those_of_the_model(models, name):
    family, model = get_manager().family(name), models[name]
    owner = Layout(model, get_manager().architecture(family, model)).component_of
    for component, size in family.size.components.items():
        counts = [tensor.numel() for key, tensor in model.named_parameters() if owner[key].name == component]
        assert (size.parameters, size.largest) == (sum(counts), max(counts))


def test_blocks_widths_and_tokens_of_monkey():
    (_, config), size = monkey(), size_of("monkey")
    sizes = size.components
    assert (sizes["vision"].blocks, sizes["vision"].width) == (config.vision.layers, config.vision.width)
    assert (sizes["language"].blocks, sizes["language"].width) == (config.num_hidden_layers, config.hidden_size)
    assert (size.vocabulary, size.tokens_per_image) == (config.vocab_size, config.image_token_span)
    patches = (config.vision.window_size // config.vision.patch_size) ** 2
    assert sizes["vision"].positions_per_image == config.vision.windows * patches
    assert sizes["aligner"].positions_per_image == (config.vision.windows + 1) * patches


def test_blocks_widths_and_tokens_of_omnilmm(models):
    (_, config), size = omnilmm(), size_of("omnilmm")
    sizes = size.components
    tower = models["omnilmm"].model.vision_tower
    assert (sizes["vision"].blocks, sizes["vision"].width) == (len(tower.blocks), config.vision.embed_dim)
    assert (sizes["language"].blocks, sizes["language"].width) == (config.num_hidden_layers, config.hidden_size)
    assert (size.vocabulary, size.tokens_per_image) == (config.vocab_size, config.num_query + 2)
    patches = (config.image_size // config.vision.patch_size) ** 2
    assert sizes["aligner"].positions_per_image == patches
    assert sizes["vision"].positions_per_image == patches + tower.num_prefix_tokens


def test_blocks_widths_and_tokens_of_xcomposer():
    from vlm_lora_xcomposer.grids import Grid
    from vlm_lora_xcomposer.visual import in_token_order

    (_, config), size = xcomposer(), size_of("xcomposer")
    sizes = size.components
    clip, side, views = config.clip, config.tokens_per_side, config.hd_num + 1
    assert (sizes["vision"].blocks, sizes["vision"].width) == (clip.num_hidden_layers, clip.hidden_size)
    assert (sizes["language"].blocks, sizes["language"].width) == (config.num_hidden_layers, config.hidden_size)
    assert sizes["vision"].positions_per_image == views * ((clip.image_size // clip.patch_size) ** 2 + 1)
    features, end = torch.zeros(views, side, side, 1), torch.zeros(1)
    (square,) = in_token_order(features, [Grid(4, 4)], end, end)
    assert (size.vocabulary, views) == (config.vocab_size, 17)
    assert len(square) == size.tokens_per_image == sizes["aligner"].positions_per_image


def stated(name, component, key="kept_per_position"):
    return pytest.approx(getattr(size_of(name).components[component], key), rel=0.02)


@pytest.mark.slow
def test_a_vision_block_of_monkey_keeps_the_stated_bytes():
    from vlm_lora_monkey.visual import VisualBlock

    block = halved(VisualBlock(monkey()[1].vision), "lora_")
    assert per_position(lambda positions: (block, (0,)), 1664) == stated("monkey", "vision")


@pytest.mark.slow
def test_the_resampler_of_monkey_keeps_the_stated_bytes():
    from vlm_lora_plugin.models.resampling import Resampler

    vision = monkey()[1].vision
    pool = Resampler(
        queries=vision.n_queries, dim=vision.output_dim, kv_dim=vision.width, num_heads=vision.pool_heads
    ).train()
    expected = size_of("monkey").components["aligner"].kept_per_position
    assert per_position(lambda positions: (pool, ()), 1664, (64, 256)) == pytest.approx(expected, rel=0.05)


KEYS = [("lora_", "kept_per_position"), ("nothing", "passed_per_position")]


def learning(block, learns, name):
    targets = size_of(name).architecture.component("language").target_modules
    return with_lora(block, targets, 64 if name != "monkey" else 16) if learns == "lora_" else halved(block, learns)


@pytest.mark.slow
@pytest.mark.parametrize(("learns", "key"), KEYS)
def test_a_language_block_of_monkey_keeps_the_stated_bytes(learns, key):
    from vlm_lora_monkey.language import MonkeyBlock, rotary_of

    block = learning(MonkeyBlock(monkey()[1], 0), learns, "monkey")

    def with_positions(positions):
        return block, (rotary_of(torch.arange(positions)[None], 128, 10000.0, 1.0),)

    assert per_position(with_positions, 4096) == stated("monkey", "language", key)


@pytest.mark.slow
def test_a_vision_block_of_omnilmm_keeps_the_stated_bytes():
    from vlm_lora_omnilmm.visual import TowerBlock

    block = halved(TowerBlock(omnilmm()[1].vision), "")
    assert per_position(lambda positions: (block, ()), 1792) == stated("omnilmm", "vision")


@pytest.mark.slow
def test_the_resampler_of_omnilmm_keeps_the_stated_bytes():
    from vlm_lora_omnilmm.visual import OmniLMMResampler

    pool = OmniLMMResampler(omnilmm()[1]).train()
    assert per_position(lambda positions: (pool, ()), 1792, (64, 256)) == stated("omnilmm", "aligner")


@pytest.mark.slow
@pytest.mark.parametrize(("learns", "key"), KEYS)
def test_a_language_block_of_omnilmm_keeps_the_stated_bytes(learns, key):
    from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralRotaryEmbedding

    _, config = omnilmm()
    config._attn_implementation = "sdpa"
    block, rotary = learning(MistralDecoderLayer(config, 0), learns, "omnilmm"), MistralRotaryEmbedding(config)

    class Called(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, hidden, tables):
            return self.block(hidden, position_embeddings=tables)

    called = Called()

    def with_positions(positions):
        return called, (rotary(torch.zeros(1, dtype=torch.bfloat16), torch.arange(positions)[None]),)

    assert per_position(with_positions, 4096) == stated("omnilmm", "language", key)


@pytest.mark.slow
def test_a_vision_block_of_xcomposer_keeps_the_stated_bytes():
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

    clip = xcomposer()[1].clip
    clip._attn_implementation = "sdpa"
    block = halved(CLIPEncoderLayer(clip), "")
    assert per_position(lambda positions: (block, (None,)), 1024) == stated("xcomposer", "vision")


@pytest.mark.slow
def test_the_projector_of_xcomposer_keeps_the_stated_bytes():
    model_class, config = xcomposer()
    with torch.device("meta"):
        empty = model_class(config).vision_proj
    projector = halved(empty.to_empty(device="cpu"), "")
    assert per_position(lambda positions: (projector, ()), config.image_token_width) == stated("xcomposer", "aligner")


@pytest.mark.slow
@pytest.mark.parametrize(("learns", "key"), KEYS)
def test_a_language_block_of_xcomposer_keeps_the_stated_bytes(learns, key):
    from vlm_lora_xcomposer.language import XComposerBlock, rotary_of

    _, config = xcomposer()
    config._attn_implementation = "sdpa"
    block = learning(XComposerBlock(config, 0), learns, "xcomposer")

    def with_positions(positions):
        image_mask = torch.ones(1, positions, 1, dtype=torch.bool)
        return block, (rotary_of(torch.arange(positions)[None], config, positions), image_mask)

    assert per_position(with_positions, 4096) == stated("xcomposer", "language", key)
