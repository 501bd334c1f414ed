"""XComposer's configuration: the published file unchanged, variants, and what is impossible."""

from __future__ import annotations

import json

import pytest
import torch

from vlm_lora_plugin.errors import ModelError
from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.modeling import XComposerForCausalLM

# The facts of the published 4KHD config; `attn_implementation` and `max_length` are upstream's own keys.
PUBLISHED = {
    "architectures": ["InternLM2ForCausalLM"],
    "attn_implementation": "flash_attention_2",
    "auto_map": {"AutoModelForCausalLM": "modeling_internlm_xcomposer2.InternLMXComposer2ForCausalLM"},
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_length": 16384,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": False,
    "vocab_size": 92544,
}


def published(**changes):
    return XComposerConfig(**{**PUBLISHED, **changes})


def test_a_published_config_without_a_variant_is_4khds():
    config = published()

    assert config.variant == "xcomposer2_4khd"
    assert (config.rope_theta, config.rope_scaling, config.dtype) == (1000000, None, torch.bfloat16)
    assert (config.image_token_id, config.turn_end_id) == (92539, 92542)
    assert config.hd_num == 16


@pytest.mark.parametrize(
    ("changes", "variant", "size", "side"),
    [
        ({}, "xcomposer2_4khd", 336, 12),
        ({"variant": "xcomposer2_5"}, "xcomposer2_5", 560, 20),
        ({"img_size": 224}, "xcomposer2", 224, 16),
        ({"img_size": 490}, "xcomposer2", 490, 35),
        ({"variant": "xcomposer2"}, "xcomposer2", 490, 35),
    ],
)
def test_a_variant_has_its_published_sizes(changes, variant, size, side):
    config = published(**changes)

    assert (config.variant, config.image_size, config.tokens_per_side) == (variant, size, side)
    assert config.takes_crops == (variant != "xcomposer2")


@pytest.mark.parametrize(
    ("variant", "rank", "scale"), [("xcomposer2_4khd", 8, 2.0), ("xcomposer2_5", 256, 1.0), ("xcomposer2", 256, 1.0)]
)
def test_partial_lora_of_the_fused_projection_differs_in_4khd_alone(variant, rank, scale):
    config = published(variant=variant)

    assert (config.plora_of("wqkv").r, config.plora_of("wqkv").scale) == (rank, scale)
    assert all((config.plora_of(name).r, config.plora_of(name).scale) == (256, 1.0) for name in ("wo", "w1", "w2"))


@pytest.mark.parametrize(
    ("changes", "total"),
    # 4KHD: 2 bytes each are the total_size of the published index, 17,194,999,808.
    [({}, 8_597_499_904), ({"variant": "xcomposer2_5"}, 8_679_813_120)],
)
def test_each_published_variant_has_its_parameters(changes, total):
    with torch.device("meta"):
        model = XComposerForCausalLM(published(**changes))

    assert sum(parameter.numel() for parameter in model.parameters()) == total


def test_saved_config_names_no_code_and_comes_back(tmp_path):
    config = published(img_size=490)
    config.save_pretrained(tmp_path)

    document = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert "auto_map" not in document
    again = XComposerConfig.from_pretrained(tmp_path)
    assert (again.variant, again.vision, again.plora) == (config.variant, config.vision, config.plora)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"variant": "xcomposer3"}, "no variant"),
        ({"num_attention_heads": 30}, "heads"),
        ({"num_key_value_heads": 5}, "heads"),
        ({"vision": {"image_size": 340}}, "image_size 340"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "neither linear nor dynamic"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
    ],
)
def test_sizes_and_scalings_that_xcomposer_lacks_are_refused(changes, what):
    with pytest.raises(ModelError, match=what):
        published(**changes)
