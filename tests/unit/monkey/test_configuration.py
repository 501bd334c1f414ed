from __future__ import annotations

import re

import pytest
import torch

from vlm_lora_monkey.configuration import MonkeyConfig
from vlm_lora_monkey.modeling import MonkeyForCausalLM
from vlm_lora_monkey.names import LORA_NAME
from vlm_lora_monkey.tiny import tiny_config
from vlm_lora_plugin.errors import ModelError

# The published file of echo840/Monkey, as far as it says anything about the model.
PUBLISHED = {
    "architectures": ["MonkeyLMHeadModel"],
    "auto_map": {"AutoModelForCausalLM": "modeling_monkey.MonkeyLMHeadModel"},
    "bf16": True,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "kv_channels": 128,
    "model_type": "monkey",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "seq_length": 2048,
    "torch_dtype": "bfloat16",
    "use_cache": False,
    "visual": {
        "heads": 16,
        "image_size": 896,
        "image_start_id": 151857,
        "layers": 48,
        "lora_repeat_num": 4,
        "mlp_ratio": 4.9231,
        "output_dim": 4096,
        "patch_size": 14,
        "width": 1664,
    },
    "vocab_size": 151936,
}


def test_monkeys_published_config_says_where_images_stand():
    config = MonkeyConfig(**PUBLISHED)

    assert config.image_token_span == 1280
    assert (config.image_start_id, config.image_end_id, config.image_pad_id) == (151857, 151858, 151859)
    assert (config.eos_token_id, config.pad_token_id) == (151643, 151643)
    assert config.vision.windows == 4
    assert str(config.dtype) == "torch.bfloat16"


def test_saved_config_names_no_code(tmp_path):
    MonkeyConfig(**PUBLISHED).save_pretrained(tmp_path)

    assert "auto_map" not in (tmp_path / "config.json").read_text()
    assert MonkeyConfig.from_pretrained(tmp_path).to_dict()["visual"] == PUBLISHED["visual"]


def test_own_end_of_text_id_is_kept():
    assert tiny_config(eos_token_id=7, pad_token_id=8).eos_token_id == 7
    assert tiny_config(eos_token_id=7, pad_token_id=8).pad_token_id == 8


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ({"visual": {"image_size": 96}}, "lora_repeat_num 4 is less than the 9 windows"),
        ({"visual": {"image_size": 16}}, "smaller than window_size"),
        ({"visual": {"heads": 3}}, "width 32 does not divide"),
        ({"visual": {"n_queries": 5}}, "not a square"),
        ({"visual": {"output_dim": 64}}, "output_dim 64"),
        ({"kv_channels": 16}, "do not make hidden_size"),
        ({"hidden_size": 256, "kv_channels": 64}, "is not hidden_size"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
    ],
)
def test_impossible_sizes_are_refused(overrides, what):
    with pytest.raises(ModelError, match=what):
        tiny_config(**overrides)


def test_incomplete_visual_names_the_missing_key():
    with pytest.raises(ModelError, match="patch_size"):
        MonkeyConfig(visual={key: value for key, value in PUBLISHED["visual"].items() if key != "patch_size"})


def test_published_monkey_has_its_parameters():
    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in MonkeyForCausalLM(MonkeyConfig(**PUBLISHED)).named_parameters()}

    assert len(sizes) == 2581
    assert sum(sizes.values()) == 9_708_053_824
    assert sum(size for name, size in sizes.items() if re.fullmatch(LORA_NAME, name)) == 51_118_656
    assert sum(size for name, size in sizes.items() if ".attn_pool." in name) == 76_054_528
