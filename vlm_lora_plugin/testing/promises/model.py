"""What a model computes: the loss, images in their places, padding without effect, generation."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn.functional import cross_entropy, pad

from vlm_lora_plugin.answering.evaluation import generate_answers
from vlm_lora_plugin.data.collation import IGNORE_INDEX
from vlm_lora_plugin.errors import VlmLoraError
from vlm_lora_plugin.testing.subject import (
    BLUE,
    RED,
    Subject,
    apart,
    inputs_of,
    logits_of,
    picture,
    text_only,
    with_image,
)
from vlm_lora_plugin.testing.verdict import NotApplicable, require

CLOSE = 1e-4
"""Largest difference relative to the largest value, in fp32: the same sum in another order of operations."""

NEW_TOKENS = 4


def the_loss_is_the_sum_over_answers_by_the_items_given(subject: Subject) -> None:
    """The loss is the sum of -log p over supervised tokens by ``num_items_in_batch``, or else their mean."""
    model, batch = subject.plain, subject.batch(with_image(), text_only(answer="red, blue, green"))
    with torch.no_grad():
        output = model(**batch)
    logits, labels = output.logits[:, :-1].double().flatten(0, 1), batch["labels"][:, 1:].flatten()
    total = float(cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum"))
    count = int((labels != IGNORE_INDEX).sum())
    mean = float(output.loss)
    require(abs(mean * count / total - 1) < CLOSE, f"the loss is {mean}, the mean over answers {total / count}")
    for items in (torch.tensor(3 * count), 3 * count):
        with torch.no_grad():
            loss = float(model(**batch, num_items_in_batch=items).loss)
        require(abs(loss * 3 * count / total - 1) < CLOSE, f"with {3 * count} items it is {loss}, not the sum by them")


def padding_on_either_side_changes_no_token(subject: Subject) -> None:
    """A row's logits are the same alone, padded on the right in a batch, and padded on the left."""
    model, rows = subject.plain, [with_image(), text_only(), text_only(answer="red " * 12)]
    batch = subject.batch(*rows)
    together = logits_of(model, batch)
    for number, row in enumerate(rows):
        alone = subject.batch(row)
        expected = logits_of(model, alone)[0]
        real = batch["attention_mask"][number].bool()
        found = apart(together[number][real], expected)
        require(found < CLOSE, f"in a batch, row {number} differs by {found:.1e} of the largest logit")
        left = logits_of(model, _padded_left(alone, 3, subject.processor.tokenizer.pad_token_id))[0, 3:]
        found = apart(left, expected)
        require(found < CLOSE, f"padded on the left, row {number} differs by {found:.1e} of the largest logit")


def an_image_is_seen_in_its_own_place(subject: Subject) -> None:
    """Another image gives other logits, and each row of a batch sees its own."""
    red, blue = with_image(), with_image(images=[picture(BLUE)])
    one, other = (logits_of(subject.plain, subject.batch(row)) for row in (red, blue))
    require(apart(one[:, -1], other[:, -1]) > CLOSE, "a red and a blue image give the same logits")
    both = logits_of(subject.plain, subject.batch(blue, red))
    found = max(apart(both[0], other[0]), apart(both[1], one[0]))
    require(found < CLOSE, f"in a batch, the logits of rows with an image each differ by {found:.1e}")
    pictures = [picture(RED), picture(BLUE)]
    straight, swapped = (
        logits_of(subject.plain, subject.batch(with_image(images=images))) for images in (pictures, pictures[::-1])
    )
    require(apart(straight, swapped) > CLOSE, "two images in one row may change places without effect")


def images_that_do_not_fit_their_places_are_refused(subject: Subject) -> None:
    """Fewer images than ``input_ids`` have places for are an error, not other numbers."""
    batch = inputs_of(subject.batch(with_image(), with_image(images=[picture(BLUE)])))
    fewer = subject.batch(with_image())
    batch |= {key: fewer[key] for key in subject.architecture.image_keys if key in fewer}
    try:
        logits_of(subject.plain, batch)
    except (VlmLoraError, ValueError, RuntimeError, IndexError):
        return
    require(False, "two rows with places for an image each are taken with one image")


def ids_and_embeddings_together_are_refused(subject: Subject) -> None:
    """``input_ids`` and ``inputs_embeds`` contradict each other; a model that takes both would ignore one of them."""
    ids = subject.batch(text_only())["input_ids"]
    if "inputs_embeds" not in inspect.signature(subject.plain.forward).parameters:
        raise NotApplicable("forward takes no inputs_embeds")
    embeds = subject.plain.get_input_embeddings()(ids)
    try:
        subject.plain(input_ids=ids, inputs_embeds=embeds)
    except (VlmLoraError, ValueError):
        return
    require(False, "both are taken")


def logits_to_keep_gives_the_last_positions(subject: Subject) -> None:
    """``logits_to_keep=2`` gives the logits of the last two positions, as generation asks for."""
    batch = inputs_of(subject.batch(with_image()))
    whole = logits_of(subject.plain, batch)
    try:
        last = logits_of(subject.plain, {**batch, "logits_to_keep": 2})
    except TypeError as error:
        raise NotApplicable(f"forward takes no logits_to_keep: {error}") from error
    if last.shape == whole.shape and "logits_to_keep" not in inspect.signature(subject.plain.forward).parameters:
        raise NotApplicable("forward neither names logits_to_keep nor shortens its logits")
    require(list(last.shape) == [1, 2, whole.shape[-1]], f"the logits are {list(last.shape)}")
    require(apart(last, whole[:, -2:]) < CLOSE, "they are not those of the last positions")


def generation_with_cache_equals_generation_without(subject: Subject) -> None:
    """Each step of greedy generation has the logits of a forward pass over everything so far."""
    processor, model = subject.processor, subject.plain
    rows = (with_image(), text_only(), with_image(images=[picture(BLUE)], question="Which one is it?"))
    for prompts in ([rows[0]], [rows[1]], rows):
        batch = processor.collate([processor.encode_prompt(row) for row in prompts])
        runs = []
        for cached in (True, False):
            settings = {"do_sample": False, "use_cache": cached, "max_new_tokens": NEW_TOKENS}
            settings |= {"min_new_tokens": NEW_TOKENS, "pad_token_id": processor.tokenizer.pad_token_id}
            with torch.no_grad():
                generate: Any = model.generate
                run = generate(**inputs_of(batch), **settings, return_dict_in_generate=True, output_logits=True)
            runs.append((run.sequences, torch.stack(run.logits)))
        (tokens, logits), (plain_tokens, plain_logits) = runs
        require(apart(logits, plain_logits) < CLOSE, f"logits differ by {apart(logits, plain_logits):.1e}")
        require(torch.equal(tokens, plain_tokens), "the tokens differ")


def a_batch_is_answered_as_its_rows_are(subject: Subject) -> None:
    """Rows of several lengths, with and without an image, get the same answers together and alone."""
    rows = [with_image(question="Red?"), text_only(), with_image(images=[picture(BLUE)], question="Which one is it?")]
    settings = {"max_new_tokens": NEW_TOKENS}
    together, alone = (
        generate_answers(subject.plain, subject.processor, rows, batch_size=size, **settings) for size in (3, 1)
    )
    require(together == alone, f"together they are answered {together}, alone {alone}")


def _padded_left(batch: dict[str, Any], by: int, token: int) -> dict[str, Any]:
    """Return a batch with padding before each row; other keys of the ids' shape get zeros."""
    shape = batch["input_ids"].shape
    fill = {"input_ids": token, "labels": IGNORE_INDEX}
    return {
        key: pad(value, (by, 0), value=fill.get(key, 0))
        if isinstance(value, torch.Tensor) and value.shape == shape
        else value
        for key, value in batch.items()
    }
