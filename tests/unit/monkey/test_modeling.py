from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from vlm_lora_monkey.tiny import tiny_model
from vlm_lora_plugin.errors import ModelError


def supervised(batch, count=3):
    """Labels on the last tokens of each row of a right-padded batch."""
    labels = torch.full_like(batch["input_ids"], -100)
    for index, length in enumerate(batch["attention_mask"].sum(-1).tolist()):
        labels[index, length - count : length] = batch["input_ids"][index, length - count : length]
    return labels


def test_rows_with_none_one_and_several_images_mix(lively, prompts):
    rows = [prompts.row(7), prompts.row("I", 5), prompts.row(2, "I", 1, "I", 6)]
    pixels = prompts.images(3)
    batch = prompts.batch(*rows)

    together = lively(**batch, pixel_values=pixels).logits
    for index, (row, images) in enumerate(zip(rows, (None, pixels[:1], pixels[1:]), strict=True)):
        alone = lively(input_ids=torch.tensor([row]), pixel_values=images).logits[0]
        torch.testing.assert_close(together[index, : len(row)], alone, rtol=1e-4, atol=1e-4)


def test_path_bytes_between_the_markers_have_no_influence(lively, prompts):
    row = torch.tensor([prompts.row("I", 3)])
    other = row.clone()
    other[0, 1:6] = torch.tensor(list(b"a.png"))
    pixels = prompts.images(1)

    assert torch.equal(
        lively(input_ids=row, pixel_values=pixels).logits, lively(input_ids=other, pixel_values=pixels).logits
    )


def test_embedding_dropout_spares_image_tokens(prompts):
    """Upstream drops before it puts the images in (modeling_qwen.py)."""
    model = tiny_model(emb_dropout_prob=0.9, visual={"lora_dropout": 0.0}).train()
    inputs = {"input_ids": torch.tensor([prompts.row("I", 40)]), "pixel_values": prompts.images(1)}
    seen = []
    model.transformer.h[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))

    model(**inputs)

    span = model.config.image_token_span
    torch.testing.assert_close(seen[0][:, 1 : span + 1], model.transformer.visual.encode(inputs["pixel_values"]))
    assert (seen[0][:, span + 1 :] == 0).float().mean() > 0.5


@pytest.mark.parametrize(("images", "rows"), [(0, ["I"]), (1, [4]), (1, ["I", "I"]), (2, ["I"])])
def test_images_and_blocks_must_be_as_many(model, prompts, images, rows):
    batch = prompts.batch(*[prompts.row(row, 2) for row in rows])

    with pytest.raises(ModelError, match="image blocks"):
        model(**batch, pixel_values=prompts.images(images) if images else None)


@pytest.mark.parametrize("places", [19, 21])
def test_block_of_another_length_is_refused(model, prompts, places):
    config = model.config
    block = [config.image_start_id, *[config.image_pad_id] * places, config.image_end_id]
    row = torch.tensor([prompts.text(2) + block + prompts.text(3)])

    with pytest.raises(ModelError, match="row 0, token 2 does not end after 20 places"):
        model(input_ids=row, pixel_values=prompts.images(1))


def test_block_cut_off_by_the_end_of_the_row_is_refused(model, prompts):
    row = torch.tensor([prompts.row(2, "I")[:-4]])

    with pytest.raises(ModelError, match="cut off"):
        model(input_ids=row, pixel_values=prompts.images(1))


def test_pixels_of_another_size_are_refused(model, prompts):
    with pytest.raises(ModelError, match="pixel_values has the shape"):
        model(input_ids=torch.tensor([prompts.row("I", 2)]), pixel_values=torch.zeros(1, 3, 32, 32))


def test_loss_is_the_token_mean_of_the_rows(lively, prompts):
    rows = [prompts.row("I", 9), prompts.row(5)]
    pixels = prompts.images(1)
    batch = prompts.batch(*rows)
    whole = lively(**batch, pixel_values=pixels, labels=supervised(batch)).loss

    losses = []
    for row, images in zip(rows, (pixels, None), strict=True):
        single = prompts.batch(row)
        losses.append(lively(**single, pixel_values=images, labels=supervised(single)).loss)
    torch.testing.assert_close(whole, sum(losses) / 2, rtol=1e-5, atol=1e-6)


def test_loss_is_the_sum_over_the_steps_tokens(lively, prompts):
    batch = prompts.batch(prompts.row(9))
    mean = lively(**batch, labels=supervised(batch)).loss

    shared = lively(**batch, labels=supervised(batch), num_items_in_batch=torch.tensor(12)).loss

    torch.testing.assert_close(shared, mean * 3 / 12)


def test_labels_may_be_int32(lively, prompts):
    batch = prompts.batch(prompts.row(9))
    labels = supervised(batch)

    assert torch.equal(lively(**batch, labels=labels.int()).loss, lively(**batch, labels=labels).loss)


def test_frozen_embeddings_that_require_gradients_do_not_break_images(model, prompts):
    """Upstream writes images into the embeddings in place: a leaf error (upstream issues #83, #153)."""
    model.requires_grad_(False)
    model.transformer.visual.attn_pool.requires_grad_(True)
    model.enable_input_require_grads()
    batch = prompts.batch(prompts.row("I", 4))

    model.train()(**batch, pixel_values=prompts.images(1), labels=batch["input_ids"]).loss.backward()

    assert model.transformer.visual.attn_pool.query.grad.any()


def test_generation_of_a_padded_batch_equals_that_of_its_rows(lively, prompts):
    rows = [prompts.row("I", 5), prompts.row(3)]
    pixels = prompts.images(1)
    batch = prompts.batch(*rows, side="left")
    settings = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [lively.config.eos_token_id]}

    together = lively.generate(**batch, pixel_values=pixels, **settings)[:, batch["input_ids"].shape[1] :]
    alone = [
        lively.generate(input_ids=torch.tensor([row]), pixel_values=images, **settings)[0, len(row) :]
        for row, images in zip(rows, (pixels, None), strict=True)
    ]

    assert torch.equal(together, torch.stack(alone))


def test_every_beam_of_a_row_sees_its_own_images(lively, prompts):
    """The library repeats image by image, so that a row's copies would see its first image twice."""
    batch = prompts.batch(prompts.row("I", 3, "I", 6), prompts.row(3, "I", 6), side="left")
    pixels, seen = prompts.images(3), []
    encode = lively.transformer.visual.encode
    lively.transformer.visual.encode = lambda images: seen.append(images) or encode(images)

    lively.generate(**batch, pixel_values=pixels, num_beams=2, max_new_tokens=3, do_sample=False)

    assert len(seen) == 1
    assert torch.equal(seen[0], pixels[[0, 1, 0, 1, 2, 2]])


def test_the_trainer_is_told_that_the_loss_takes_num_items_in_batch(model):
    assert model.accepts_loss_kwargs


def test_a_generation_keeps_its_prompts_ntk_factor(lively, prompts):
    lively.config.seq_length = 8
    row = torch.tensor([prompts.row(12)])
    cache = DynamicCache()
    first = lively(input_ids=row[:, :8], past_key_values=cache, use_cache=True)
    step = lively(input_ids=row[:, 8:9], past_key_values=first.past_key_values, use_cache=True).logits
    lively.config.use_dynamic_ntk = False
    without_rule = lively(input_ids=row[:, :9]).logits[:, -1:]

    torch.testing.assert_close(step, without_rule, rtol=1e-4, atol=1e-5)


def test_embeddings_may_be_given_in_place_of_ids(lively, prompts):
    row = torch.tensor([prompts.row(6)])

    given = lively(inputs_embeds=lively.get_input_embeddings()(row)).logits

    assert torch.equal(given, lively(input_ids=row).logits)


def test_ids_and_embeddings_together_are_refused(model, prompts):
    row = torch.tensor([prompts.row(6)])

    with pytest.raises(ModelError, match="exactly one"):
        model(input_ids=row, inputs_embeds=model.get_input_embeddings()(row))
    with pytest.raises(ModelError, match="image places are unknown"):
        model(inputs_embeds=model.get_input_embeddings()(row), pixel_values=prompts.images(1))


def test_hidden_states_and_tuples_on_request(lively, prompts):
    row = torch.tensor([prompts.row(6)])

    states = lively(input_ids=row, output_hidden_states=True).hidden_states
    as_tuple = lively(input_ids=row, return_dict=False)

    assert len(states) == 3
    assert torch.equal(lively.lm_head(states[-1]), as_tuple[0])
    with pytest.raises(ModelError, match="attention maps"):
        lively(input_ids=row, output_attentions=True)


def test_own_checkpointing_of_the_library_covers_tower_and_language_model(lively, prompts):
    batch = prompts.batch(prompts.row("I", 4))
    inputs = {**batch, "pixel_values": prompts.images(1), "labels": batch["input_ids"]}
    for module in lively.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    lively.train()(**inputs).loss.backward()
    plain = {name: p.grad for name, p in lively.named_parameters() if p.grad is not None}
    lively.zero_grad()
    lively.gradient_checkpointing_enable()
    lively(**inputs).loss.backward()

    assert lively.is_gradient_checkpointing
    assert all(torch.equal(p.grad, plain[name]) for name, p in lively.named_parameters() if name in plain)


def test_sixteen_bit_weights_beside_trained_ones_need_no_autocast(model, prompts):
    model.bfloat16()
    for name, parameter in model.named_parameters():
        if "lora" in name or "attn_pool" in name:
            parameter.data = parameter.data.float()
    row = torch.tensor([prompts.row("I", 4)])

    logits = model(input_ids=row, pixel_values=prompts.images(1)).logits

    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
