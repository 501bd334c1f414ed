"""Model folders: the published layouts, what the tensors' headers decide, and what is not ours."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import vlm_lora_plugin
from vlm_lora_plugin.contract import LoadRequest
from vlm_lora_plugin.errors import ModelError, WeightsError
from vlm_lora_xcomposer.folder import recognises
from vlm_lora_xcomposer.modeling import XComposerForCausalLM
from vlm_lora_xcomposer.tiny import tiny_model, write_tiny_folder
from vlm_lora_xcomposer.weights import load_model

OWN_KEYS = ("variant", "vision", "plora", "projector_size", "post_layernorm", "video_memory_size", "hd_num")
# The tower's heads and the scale of partial LoRA are in no tensor.
HEADS = {"num_attention_heads": 2}


@pytest.fixture
def folder(tmp_path):
    """Make a tiny folder; ``published=True`` leaves the keys out that upstream keeps in its code."""

    def make(variant="xcomposer2_4khd", *, published=False, **overrides):
        path = write_tiny_folder(tmp_path / "tiny", variant, seed=3, **overrides)
        if published:
            edit_config(path, **{**dict.fromkeys(OWN_KEYS), "vision": HEADS})
        return path

    return make


def edit_config(path, **changes):
    document = {**json.loads((path / "config.json").read_text("utf-8")), **changes}
    kept = {key: value for key, value in document.items() if value is not None}
    (path / "config.json").write_text(json.dumps(kept), "utf-8")


def same(model, other):
    theirs = dict(other.named_parameters())
    return all(torch.equal(parameter, theirs.pop(name)) for name, parameter in model.named_parameters()) and not theirs


def test_the_auto_class_ends_answers_at_the_turns_end(folder):
    path = folder()
    model = AutoModelForCausalLM.from_pretrained(path)

    assert same(model, tiny_model(seed=3))
    assert model.config.turn_end_id in model.generation_config.eos_token_id


def test_weights_become_16_bit_tensor_by_tensor(folder):
    model, _ = vlm_lora_plugin.load(folder(), dtype=torch.bfloat16)

    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("variant", "size"), [("xcomposer2_4khd", 336), ("xcomposer2_5", 560), ("xcomposer2", 224), ("xcomposer2", 490)]
)
@pytest.mark.parametrize("loader", ["ours", "the library's"])
def test_a_published_config_is_completed_from_the_headers(folder, variant, size, loader):
    small = {"image_size": size, "patch_size": 14, "hidden_size": 8, "intermediate_size": 24}
    path = folder(variant, published=True, vision=small, plora={"wqkv": [3, 3], "other": [5, 5]}, post_layernorm=True)
    if loader == "ours":
        config = load_model(LoadRequest(path)).config
    else:
        config = XComposerForCausalLM.from_pretrained(path).config

    assert (config.variant, config.image_size) == (variant, size)
    assert config.plora_of("wqkv").r == 3
    assert config.plora_of("wqkv").scale == (2.0 if variant == "xcomposer2_4khd" else 1.0)
    assert (config.plora_of("w2").r, config.plora_of("w2").scale) == (5, 1.0)
    assert config.post_layernorm
    assert config.vision["intermediate_size"] == 24


def test_crops_of_no_published_size_need_a_named_variant(folder):
    path = folder(published=True)
    with pytest.raises(ModelError, match="variant"):
        load_model(LoadRequest(path))

    edit_config(path, variant="xcomposer2_5")
    assert load_model(LoadRequest(path)).config.variant == "xcomposer2_5"


def test_a_config_alone_makes_a_model_without_weights(folder):
    path = folder()
    (path / "model.safetensors").unlink()
    model = load_model(LoadRequest(path, device="meta"))

    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_variant_can_be_named_for_a_config_alone(folder):
    path = folder()
    (path / "model.safetensors").unlink()
    edit_config(path, **dict.fromkeys(OWN_KEYS))
    model = load_model(LoadRequest(path, device="meta", variant="xcomposer2_5"))
    assert model.config.image_size == 560

    edit_config(path, img_size=224)
    with pytest.raises(ModelError, match="holds the variant xcomposer2"):
        load_model(LoadRequest(path, device="meta", variant="xcomposer2_5"))


def test_upstreams_buffers_are_dropped_and_a_missing_tensor_is_an_error(folder):
    path = folder()
    weights = {name: tensor.clone() for name, tensor in load_file(path / "model.safetensors").items()}
    weights["model.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(8)
    weights["vit.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    assert same(load_model(LoadRequest(path)), tiny_model(seed=3))

    del weights["model.layers.1.feed_forward.w3.Plora_B.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"w3\.Plora_B"):
        load_model(LoadRequest(path))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "internlmxcomposer2", "architectures": ["InternLM2ForCausalLM"]},
        {"model_type": "internlm2", "architectures": ["InternLMXComposer2ForCausalLM"]},
        {
            "model_type": "internlm2",
            "architectures": ["InternLM2ForCausalLM"],
            "auto_map": {"AutoModel": "modeling_internlm_xcomposer2.InternLMXComposer2ForCausalLM"},
        },
        {"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"]},  # the tensors tell
    ],
)
def test_published_configs_are_recognised(folder, changes):
    path = folder()
    edit_config(path, **changes)

    assert recognises(path)
    assert vlm_lora_plugin.loading.get_manager().family_of_folder(path).name == "xcomposer"


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "qwen2"},
        {"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"]},
        {"model_type": "internlmxcomposer2", "architectures": ["InternLMXComposer2ForRewardModel"]},
        {"model_type": "InternLMXComposer", "architectures": ["InternLMXComposerForCausalLM"]},
        {"model_type": "qwen", "architectures": ["QWenLMHeadModel"]},
        {"model_type": "internvl_chat", "llm_config": {"architectures": ["InternLM2ForCausalLM"]}},
    ],
)
def test_internlm2_without_partial_lora_is_not_recognised(folder, changes):
    path = folder()
    edit_config(path, **changes)
    weights = {name: t.clone() for name, t in load_file(path / "model.safetensors").items() if "Plora" not in name}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})

    assert not recognises(path)
