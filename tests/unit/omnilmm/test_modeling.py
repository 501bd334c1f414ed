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


def test_the_tower_sees_the_prompt_alone_when_generating_with_cache(model, prompts):
    calls = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    inputs = {**prompts.batch(prompts.row("I", 4)), "pixel_values": prompts.images(1)}
    model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=-1)

    assert len(calls) == 1


@pytest.fixture
def two_rows(prompts):
    """Two images in the first row, one in the second."""
    return {**prompts.batch(prompts.row("I", 3, "I", 6), prompts.row(3, "I", 6), side="left"),
            "pixel_values": prompts.images(3)}  # fmt: skip


def test_several_answers_of_a_row_all_see_its_own_images(model, two_rows):
    """The library repeats image by image, so that a row's copies would see its first image twice."""
    options = {"max_new_tokens": 6, "pad_token_id": 2, "suppress_tokens": list(model.config.image_ids)}
    likeliest = model.generate(**two_rows, **options, do_sample=False)

    answers = model.generate(**two_rows, **options, do_sample=True, top_k=1, num_return_sequences=3)

    assert torch.equal(answers, likeliest.repeat_interleave(3, 0))
    listed = {**two_rows, "pixel_values": list(two_rows["pixel_values"])}
    assert torch.equal(model.generate(**listed, **options, do_sample=True, top_k=1, num_return_sequences=3), answers)


def test_every_beam_of_a_row_sees_its_images(model, two_rows):
    seen = []
    model.model.vision_tower.register_forward_pre_hook(lambda tower, inputs: seen.append(inputs[0]))
    model.generate(**two_rows, num_beams=2, max_new_tokens=3, pad_token_id=2)

    assert torch.equal(seen[0], two_rows["pixel_values"][[0, 1, 0, 1, 2, 2]])
    assert len(seen) == 1


def test_images_for_another_number_of_places_are_refused_before_rows_are_repeated(model, two_rows):
    with pytest.raises(ModelError, match="2 images and its rows have places for 3"):
        model.generate(**{**two_rows, "pixel_values": two_rows["pixel_values"][:2]}, num_beams=2, max_new_tokens=3)


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

    assert torch.equal(model(**listed).logits, model(**batch).logits)


def test_listed_images_of_one_size_take_one_pass_through_the_tower_together(model, prompts):
    calls = []
    model.model.vision_tower.register_forward_hook(lambda tower, inputs, output: calls.append(tuple(inputs[0].shape)))
    images = [*prompts.images(2), torch.randn(3, 48, 48), *prompts.images(1)]

    together = model.model.encode_images(images)

    assert calls == [(3, 3, 32, 32), (1, 3, 48, 48)]
    one_by_one = torch.cat([model.model.encode_images(image[None]) for image in images])
    torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-6)


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


def test_the_message_counts_images_and_blocks(model, prompts):
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
        ({"num_query": 5}, "not a square number"),
        ({"hidden_size": 64}, "below 128"),
        ({"mm_use_im_start_end": False}, "mm_use_im_start_end"),
        ({"tie_word_embeddings": True}, "a head of its own"),
    ],
)
def test_resamplers_and_heads_that_omnilmm_lacks_are_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(("tower", "message"), [({"depth": 1}, "no block"), ({"num_heads": 3}, "3 heads")])
def test_impossible_towers_are_refused(tower, message):
    with pytest.raises(ModelError, match=message):
        OmniLMMForCausalLM(tiny_config(tower=tower))
