import json

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vlm_lora_plugin.contract import LoadRequest
from vlm_lora_plugin.models.building import GENERATION_FILE, build_empty

SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16}


def test_nothing_is_allocated(tmp_path):
    model = build_empty(LlamaForCausalLM, LlamaConfig(**SMALL), LoadRequest(folder=tmp_path))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not model.training


def test_the_dtype_asked_for_comes_before_the_configs(tmp_path):
    config = LlamaConfig(**SMALL, dtype=torch.float16)
    request = LoadRequest(folder=tmp_path, dtype=torch.bfloat16, device="meta")
    assert {p.dtype for p in build_empty(LlamaForCausalLM, config, request).parameters()} == {torch.bfloat16}
    assert config.dtype == torch.bfloat16


def test_without_one_the_configs_dtype_is_taken(tmp_path):
    config = LlamaConfig(**SMALL, dtype=torch.float16)
    model = build_empty(LlamaForCausalLM, config, LoadRequest(folder=tmp_path, device="meta"))
    assert model.lm_head.weight.dtype == torch.float16


def test_the_folders_generation_settings_are_taken_and_the_cache_switched_on(tmp_path):
    (tmp_path / GENERATION_FILE).write_text(json.dumps({"max_new_tokens": 7, "use_cache": False}))
    model = build_empty(LlamaForCausalLM, LlamaConfig(**SMALL), LoadRequest(folder=tmp_path))
    assert model.generation_config.max_new_tokens == 7
    assert model.generation_config.use_cache
