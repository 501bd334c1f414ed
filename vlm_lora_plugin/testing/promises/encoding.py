"""What a processor makes of rows: ids, labels and images, alike for every framework."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import torch

from vlm_lora_plugin.contract.example import IMAGE_MARK, Example, Message
from vlm_lora_plugin.contract.processor import MeasuringProcessor
from vlm_lora_plugin.data.collation import IGNORE_INDEX
from vlm_lora_plugin.errors import DataError
from vlm_lora_plugin.loading import load
from vlm_lora_plugin.testing.subject import BLUE, RED, Subject, example, picture, text_only, with_image
from vlm_lora_plugin.testing.verdict import require

SIZE = (48, 40)


def rows_become_ids_labels_and_images(subject: Subject) -> None:
    """``encode`` gives ids and labels [T] int64, the answer supervised, images under the architecture's keys."""
    processor, keys = subject.processor, subject.architecture.image_keys
    for row in _rows():
        encoded = processor.encode(row)
        ids, labels = encoded["input_ids"], encoded["labels"]
        require(ids.dtype == labels.dtype == torch.int64, f"ids and labels are {ids.dtype} and {labels.dtype}")
        require(ids.ndim == 1 and ids.shape == labels.shape, f"ids are {list(ids.shape)}, labels {list(labels.shape)}")
        supervised = labels != IGNORE_INDEX
        require(torch.equal(ids[supervised], labels[supervised]), "a label is not its own position's id")
        turns = sum(message.role == "assistant" for message in row.messages)
        starts = (supervised[1:] & ~supervised[:-1]).sum()
        require(int(starts) == turns, f"{turns} answers give {int(starts)} supervised stretches")
        counted = (len(ids), int(supervised.sum()))
        require(processor.count_tokens(row) == counted, f"count_tokens: {processor.count_tokens(row)}, not {counted}")
        if isinstance(processor, MeasuringProcessor):
            measured = processor.measure(row, [SIZE] * len(row.images))
            require(tuple(measured) == counted, f"measure: {measured}, not {counted}")
        held = subject.architecture.count_images(processor.collate([encoded]))
        require(held == len(row.images), f"a batch with {len(row.images)} images counts {held} of them")
        unnamed = [key for key in keys if row.images and key not in encoded]
        require(not unnamed, f"Architecture.image_keys names {unnamed}, which a row with an image lacks")


def marked_answers_are_not_learnt(subject: Subject) -> None:
    """An answer that a row marks (``Message.learnt`` False) has no labels, and the others keep theirs."""
    (row,) = (row for row in _rows() if len(row.messages) == 4)
    marked = replace(row, messages=(row.messages[0], replace(row.messages[1], learnt=False), *row.messages[2:]))
    whole, part = subject.processor.encode(row), subject.processor.encode(marked)
    require(torch.equal(whole["input_ids"], part["input_ids"]), "the mark changes the ids")
    prompt = len(subject.processor.encode_prompt(row)["input_ids"])
    require(not bool((part["labels"][:prompt] != IGNORE_INDEX).any()), "the marked answer is learnt")
    require(torch.equal(whole["labels"][prompt:], part["labels"][prompt:]), "the other answer's labels differ")


def a_prompt_is_the_row_without_its_answer(subject: Subject) -> None:
    """``encode_prompt`` gives the ids that ``encode`` puts before the last answer, and the same images."""
    for row in _rows():
        encoded, prompt = subject.processor.encode(row), subject.processor.encode_prompt(row)
        ids = prompt["input_ids"]
        require(torch.equal(encoded["input_ids"][: len(ids)], ids), "its ids do not begin the row's")
        supervised = (encoded["labels"] != IGNORE_INDEX).nonzero().flatten()
        require(int(supervised[-1]) >= len(ids), "it holds the end of the answer")
        last = subject.processor.encode(row)["labels"][len(ids) :]
        require(bool((last != IGNORE_INDEX).any()), "nothing of the last answer comes after it")
        for key in subject.architecture.image_keys:
            require(_same(prompt.get(key), encoded.get(key)), f"{key} is not the row's")


def rows_that_are_too_long_are_refused_or_cut(subject: Subject) -> None:
    """``max_length`` raises DataError with the row's name, or cuts on the right, never inside an image."""
    processor = subject.processor
    row = with_image(answer="red " * 20, origin="train.jsonl:7")
    whole = processor.encode(row)["input_ids"]
    try:
        processor.encode(row, max_length=len(whole) - 1)
    except DataError as error:
        require("train.jsonl:7" in str(error), f"the message does not name the row: {error}")
    else:
        require(False, f"{len(whole)} tokens pass max_length={len(whole) - 1}")
    require(len(processor.encode(row, max_length=len(whole))["input_ids"]) == len(whole), "an exact fit is refused")
    cut = processor.encode(row, max_length=len(whole) - 3, truncation_strategy="right")
    require(torch.equal(cut["input_ids"], whole[: len(whole) - 3]), "truncation_strategy right does not cut the end")
    require(cut["labels"].shape == cut["input_ids"].shape, "labels are cut otherwise than ids")
    try:
        processor.encode(row, max_length=1, truncation_strategy="right")
    except DataError:
        return
    require(False, "a row cut inside its image is taken")


def a_batch_pads_and_supervises_no_padding(subject: Subject) -> None:
    """``collate`` gives ids, mask and labels [B, T]; padding is masked and not supervised; images keep their order."""
    rows = [with_image(answer="red"), text_only(answer="blue and green, or yellow"), with_image()]
    encoded = [subject.processor.encode(row) for row in rows]
    batch = subject.processor.collate(encoded)
    longest = max(len(row["input_ids"]) for row in encoded)
    for key in ("input_ids", "attention_mask", "labels"):
        shape = list(batch[key].shape)
        require(shape == [len(rows), longest], f"{key} is {shape}, not {[len(rows), longest]}")
    mask = batch["attention_mask"].bool()
    require(not bool((batch["labels"][~mask] != IGNORE_INDEX).any()), "padding is supervised")
    for number, row in enumerate(encoded):
        require(torch.equal(batch["input_ids"][number][mask[number]], row["input_ids"]), f"row {number} lost tokens")
        require(torch.equal(batch["labels"][number][mask[number]], row["labels"]), f"row {number} lost labels")
    require(subject.architecture.count_images(batch) == 2, "a batch of two images counts others")
    require(subject.architecture.count_images(subject.batch(text_only())) == 0, "a text-only batch counts images")


def a_saved_processor_encodes_alike(subject: Subject) -> None:
    """What ``save_pretrained`` writes beside a config gives the same processor again."""
    folder = subject.work / "processor"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(subject.folder, folder, ignore=lambda _, names: {name for name in names if name != "config.json"})
    subject.processor.save_pretrained(folder)
    again = load(folder, device="meta")[1]
    for row in _rows():
        one, other = subject.processor.encode(row), again.encode(row)
        different = sorted(key for key in one.keys() | other.keys() if not _same(one.get(key), other.get(key)))
        require(not different, f"these keys differ: {different}")


def _rows() -> list[Example]:
    """Return a row with an image, one without, and one of two turns with an image in each."""
    turns = (
        Message("user", f"{IMAGE_MARK}Which colour?"),
        Message("assistant", "It is red."),
        Message("user", f"And {IMAGE_MARK} this?"),
        Message("assistant", "It is blue."),
    )
    two = Example(turns, (picture(RED, SIZE), picture(BLUE, SIZE)), "row 3")
    return [example(images=[picture(RED, SIZE)]), text_only(), two]


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(_same(left, right) for left, right in zip(one, other, strict=True))
    return bool(one == other)
