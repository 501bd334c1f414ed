from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from vlm_lora_omnilmm.configuration import PUBLISHED_TOWER_NAME, OmniLMMConfig
from vlm_lora_omnilmm.modeling import OmniLMMForCausalLM
from vlm_lora_omnilmm.tiny import tiny_config
from vlm_lora_plugin.errors import ModelError


def test_parameters_have_the_published_names_and_shapes():
    published = {"hidden_size": 4096, "vocab_size": 32009, "num_query": 64, "mm_vision_tower": PUBLISHED_TOWER_NAME}
    with torch.device("meta"):
        model = OmniLMMForCausalLM(OmniLMMConfig(**published))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    tower = "model.vision_tower."
    assert shapes[f"{tower}pos_embed"] == (1, 257, 1792)
    assert shapes[f"{tower}patch_embed.proj.weight"] == (1792, 3, 14, 14)
    assert shapes[f"{tower}blocks.62.attn.qkv.weight"] == (5376, 1792)
    assert shapes[f"{tower}blocks.62.mlp.fc1.weight"] == (15360, 1792)
    assert not [name for name in shapes if "blocks.63" in name or "k_bias" in name]
    assert shapes["model.resampler.kv_proj.weight"] == (4096, 1792)
    assert shapes["model.resampler.attn.in_proj_weight"] == (12288, 4096)
    assert shapes["model.resampler.proj"] == shapes["model.resampler.attn.out_proj.weight"] == (4096, 4096)
    assert shapes["model.layers.31.self_attn.k_proj.weight"] == (1024, 4096)
    assert shapes["lm_head.weight"] == (32009, 4096)
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 2) == 11.61


@pytest.mark.parametrize("side", ["right", "left"])
def test_generation_with_cache_equals_generation_without(model, prompts, side):
    rows = (prompts.row(3, "I", 4), prompts.row("I", 2, "I", 5)) if side == "left" else (prompts.row("I", 4),)
    inputs = {**prompts.batch(*rows, side=side), "pixel_values": prompts.images(3 if side == "left" else 1)}
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1, "pad_token_id": 2}

    cached = model.generate(**inputs, **options)

    assert torch.equal(cached, model.generate(**inputs, **options, use_cache=False))
    assert cached.shape[1] == inputs["input_ids"].shape[1] + 6


def test_the_tower_sees_the_prompt_alone_when_generating_with_cache(model, prompts):
    calls = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    inputs = {**prompts.batch(prompts.row("I", 4)), "pixel_values": prompts.images(1)}
    model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=-1)

    assert len(calls) == 1


def test_a_batch_is_its_rows(model, prompts):
    batch = prompts.training_batch()
    whole = model(**batch).logits
    first = model(batch["input_ids"][:1], pixel_values=batch["pixel_values"]).logits
    second = model(batch["input_ids"][1:, :9]).logits

    torch.testing.assert_close(whole[:1], first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole[1:, :9], second, rtol=1e-4, atol=1e-5)


def test_images_as_a_list_equal_one_tensor(model, prompts):
    batch = prompts.training_batch()
    listed = {**batch, "pixel_values": list(batch["pixel_values"])}

    torch.testing.assert_close(model(**listed).logits, model(**batch).logits, rtol=1e-4, atol=1e-5)


def test_listed_images_of_one_size_take_one_pass_through_the_tower(model, prompts):
    passes = []
    model.model.vision_tower.register_forward_hook(lambda tower, inputs, output: passes.append(len(inputs[0])))
    batch = prompts.training_batch()
    model(**{**batch, "pixel_values": list(batch["pixel_values"])})

    assert passes == [2]


def test_images_of_several_sizes_are_refused_where_other_ranks_would_wait(model, prompts, monkeypatch):
    images = [torch.zeros(3, 32, 32), torch.zeros(3, 64, 64)]
    tokens = model.model.encode_images(images)
    monkeypatch.setattr("vlm_lora_omnilmm.modeling.several_ranks", lambda: True)

    assert torch.equal(model.model.encode_images(images), tokens), "in evaluation nothing waits"
    with pytest.raises(ModelError, match=r"several sizes: \[3, 32, 32\], \[3, 64, 64\]"):
        model.train().model.encode_images(images)


def test_a_text_only_batch_trains(model, prompts):
    model.train()
    ids = prompts.batch(prompts.row(6))["input_ids"]
    model(ids, labels=ids).loss.backward()

    assert model.lm_head.weight.grad.any()


def test_a_loss_of_accumulated_halves_is_the_whole_batchs(model, prompts):
    """Upstream's forward swallows `num_items_in_batch`, so that the Trainer's loss is multiplied."""
    batch = prompts.training_batch()
    count = int((batch["labels"][:, 1:] != -100).sum())
    whole = model(**batch).loss
    first = model(batch["input_ids"][:1], labels=batch["labels"][:1], pixel_values=batch["pixel_values"],
                  num_items_in_batch=count).loss  # fmt: skip
    second = model(batch["input_ids"][1:, :9], labels=batch["labels"][1:, :9], num_items_in_batch=count).loss

    assert model.accepts_loss_kwargs
    torch.testing.assert_close(first + second, whole, rtol=1e-5, atol=1e-6)


def test_images_that_do_not_fit_their_places_are_refused(model, prompts):
    batch = prompts.batch(prompts.row("I", 4))
    with pytest.raises(ModelError, match="2 images and 1 image blocks"):
        model(**batch, pixel_values=prompts.images(2))
    with pytest.raises(ModelError, match="0 images and 1 image blocks"):
        model(**batch)
    with pytest.raises(ModelError, match="does not end after 4 places"):
        model(batch["input_ids"][:, :4], pixel_values=prompts.images(1))


def test_a_model_without_token_ids_says_so(prompts):
    model = OmniLMMForCausalLM(tiny_config(im_patch_token=None))
    with pytest.raises(ModelError, match="which tokens mark an image"):
        model(torch.tensor([[1, 5]]))


def test_the_table_is_frozen_and_the_rest_is_not(model):
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["model.resampler.pos_embed"]


def test_the_classes_are_known_to_the_auto_classes():
    assert isinstance(AutoModelForCausalLM.from_config(tiny_config()), OmniLMMForCausalLM)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_query": 5}, "no square number"),
        ({"hidden_size": 64}, "below 128"),
        ({"mm_use_im_start_end": False}, "mm_use_im_start_end"),
        ({"tie_word_embeddings": True}, "a head of its own"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(("tower", "message"), [({"depth": 1}, "no block"), ({"num_heads": 3}, "3 heads")])
def test_impossible_towers_are_refused(tower, message):
    with pytest.raises(ModelError, match=message):
        OmniLMMForCausalLM(tiny_config(tower=tower))
