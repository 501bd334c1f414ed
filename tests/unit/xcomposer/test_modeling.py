"""The whole model: images in their places, batches of any mix, generation."""

from __future__ import annotations

import pytest
import torch

from vlm_lora_plugin.errors import ModelError

VARIANTS = ("xcomposer2_4khd", "xcomposer2_5", "xcomposer2")


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_unequal_length_with_none_one_and_several_images_mix(lively, batches, variant):
    model = lively(variant)
    wide = (1, 2) if model.config.takes_crops else (1, 1)
    batch = batches(model).batch([4, wide, 3, (1, 1), 5], [6], [2, (1, 1), 7])

    mixed, images, taken = logits(model, batch), batch["pixel_values"], 0
    for index, count in enumerate((2, 0, 1)):
        length = int(batch["attention_mask"][index].sum())
        row = {"input_ids": batch["input_ids"][index : index + 1, :length]}
        if count:
            row["pixel_values"] = images[taken : taken + count]
        taken += count
        torch.testing.assert_close(mixed[index, :length], logits(model, row)[0], rtol=1e-4, atol=1e-4)


def test_partial_lora_acts_on_image_tokens_alone(lively, batches):
    model = lively()
    batch = batches(model).batch([4, (1, 1), 3])
    text = {"input_ids": batch["input_ids"][:, :4]}
    before, plain = logits(model, batch), logits(model, text)
    for name, parameter in model.named_parameters():
        if "Plora_B" in name:
            parameter.data.mul_(2)

    assert torch.equal(logits(model, text), plain)
    torch.testing.assert_close(logits(model, batch)[:, :4], before[:, :4])
    assert not torch.allclose(logits(model, batch)[:, 4:], before[:, 4:])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda batch: {**batch, "pixel_values": batch["pixel_values"][:1]},
        lambda batch: {key: value for key, value in batch.items() if key != "pixel_values"},
        lambda batch: {**batch, "pixel_values": [*batch["pixel_values"], batch["pixel_values"][0]]},
        lambda batch: {**batch, "input_ids": batch["input_ids"][:, :-8], "attention_mask": None},
        lambda batch: {**batch, "pixel_values": batch["pixel_values"][::-1]},
    ],
    ids=["an image less", "no image", "an image more", "cut off", "in another order"],
)
def test_images_of_another_number_size_or_order_are_refused(lively, batches, spoil):
    model = lively()
    batch = batches(model).batch([2, (1, 2), 3, (1, 1)])

    with pytest.raises(ModelError, match=r"image|Image"):
        model(**spoil(batch))


def test_loss_is_the_token_mean_or_the_sum_over_the_steps_tokens(lively, batches):
    model = lively()
    batch = batches(model).labelled([4, (1, 1), 6], [8])
    count = int((batch["labels"][:, 1:] != -100).sum())

    mean, shared = model(**batch).loss, model(**batch, num_items_in_batch=2 * count).loss
    torch.testing.assert_close(mean, 2 * shared)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_generates_with_cache_as_without(lively, batches, variant):
    model = lively(variant)
    batch = batches(model).batch([3, (1, 1), 4], [5], side="left")

    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2}
    cached = model.generate(**batch, **options, use_cache=True)
    assert torch.equal(cached, model.generate(**batch, **options, use_cache=False))


def test_beams_and_several_answers_repeat_the_images_of_their_row(lively, batches):
    model = lively()
    batch = batches(model).batch([3, (1, 2), 2, (1, 1), 4], [5, (1, 1), 2], side="left")
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 2, "num_beams": 3, "num_return_sequences": 2}

    both = model.generate(**batch, **options)
    first = {
        "input_ids": batch["input_ids"][:1],
        "attention_mask": batch["attention_mask"][:1],
        "pixel_values": batch["pixel_values"][:2],
    }
    assert torch.equal(both[:2], model.generate(**first, **options))


def test_an_answer_ends_with_its_turn(lively, batches):
    model = lively()
    model.output.weight.data.zero_()
    model.model.norm.weight.data.fill_(1.0)
    batch = batches(model).batch([5])
    assert model.config.turn_end_id in model.generation_config.eos_token_id

    model.output.weight.data[model.config.turn_end_id] = logits_direction(model, batch)
    new = model.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=2)[0, 5:]
    assert new.tolist() == [model.config.turn_end_id]


def logits_direction(model, batch):
    with torch.no_grad():
        embeds = model.model.tok_embeddings(batch["input_ids"])
        return model.model(inputs_embeds=embeds).last_hidden_state[0, -1]


@pytest.mark.parametrize("scaling", [{"type": "linear", "factor": 2.0}, {"type": "dynamic", "factor": 2.0}])
def test_scaled_positions_change_long_sequences(lively, batches, scaling):
    plain, scaled = lively(max_position_embeddings=8), lively(max_position_embeddings=8, rope_scaling=scaling)
    long, short = batches(plain).batch([20]), batches(plain).batch([6])

    assert not torch.allclose(logits(plain, long), logits(scaled, long))
    assert torch.allclose(logits(plain, short), logits(scaled, short)) == (scaling["type"] == "dynamic")
