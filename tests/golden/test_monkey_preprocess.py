"""`preprocess.json`: upstream's own preprocessing, both scripts, reproduced exactly by our encoder."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from vocabularies import qwen_folder

from vlm_lora_monkey.processing import MonkeyProcessor
from vlm_lora_monkey.records import parse_record
from vlm_lora_monkey.tokenization import load_tokenizer
from vlm_lora_plugin.errors import DataError

CASES = json.loads((Path(__file__).parent / "monkey" / "preprocess.json").read_text("utf-8"))
FIRST_SCRIPT = "finetune_multitask.py"


def name(case):
    return f"{case['upstream_script'].removesuffix('.py')}-{case['name']}"


def cases(*, broken):
    return [pytest.param(case, id=name(case)) for case in CASES if (case["printed_error"] is not None) == broken]


def spread(run_lengths):
    return list(chain.from_iterable([value] * count for value, count in run_lengths))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(qwen_folder())


class PathProcessor(MonkeyProcessor):
    """Upstream's ids stand for the image's path, which its model opens; ours leave it to the pixels."""

    def _image_block(self, image):
        path = str(image).encode()
        pads = [self.image_pad_id] * (self.image_token_span - len(path))
        return [self.image_start_id, *path, *pads, self.image_end_id]

    def load_image(self, image, origin):
        return torch.zeros(3, 1, 1)


def example_of(case):
    turns = case["example"]["conversations"]
    if case["upstream_script"] == FIRST_SCRIPT:
        turns = turns[:2]  # it never reads further
    return parse_record({"conversations": turns}, Path(), case["name"])


def upstream_padding(row, case, pad):
    """Upstream pads every row to max_length, cuts there, and masks every pad id but the answers' ends."""
    ids, labels = row["input_ids"].tolist(), row["labels"].tolist()
    ends = {i for i, label in enumerate(labels) if label != -100 and [*labels, -100][i + 1] == -100}
    mask = [int(token != pad or i in ends) for i, token in enumerate(ids)]
    room = case["max_length"] - len(ids)
    padded = (ids + [pad] * room, labels + [-100] * room, mask + [0] * room)
    return tuple(values[: case["max_length"]] for values in padded)


@pytest.mark.parametrize("case", cases(broken=False))
def test_ids_labels_and_mask_equal_upstreams(case, tokenizer):
    processor = PathProcessor(tokenizer, image_size=896, image_token_span=case["img_token_span"])
    ids, labels, mask = upstream_padding(processor.encode(example_of(case)), case, tokenizer.pad_token_id)
    assert ids == spread(case["expected_input_ids_rle"])
    assert labels == spread(case["expected_labels_rle"])
    assert mask == spread(case["expected_attention_mask_rle"])
    assert len(ids) == case["length"]


@pytest.mark.parametrize("case", cases(broken=True))
def test_what_upstream_drops_with_a_printed_error_is_an_error(case, tokenizer):
    processor = MonkeyProcessor(tokenizer, image_size=896, image_token_span=case["img_token_span"])
    tags = "without </img>" if "img_tag" in case["name"] else "cannot be read as an image"
    with pytest.raises(DataError, match=tags):
        processor.encode(example_of(case))


@pytest.mark.parametrize("case", [c for c in CASES if c["name"].startswith("path_")], ids=name)
def test_the_length_of_a_path_costs_no_token_and_drops_no_message(case, tokenizer):
    processor = MonkeyProcessor(tokenizer, image_size=896, image_token_span=case["img_token_span"])
    question = len(tokenizer(" q").input_ids)
    assert processor.count_tokens(example_of(case)) == (case["img_token_span"] + 2 + question + 2, 2)


def test_an_image_cut_by_upstream_is_an_error(tokenizer):
    case = next(c for c in CASES if c["name"] == "two_images_truncated" and c["upstream_script"] == FIRST_SCRIPT)
    processor = PathProcessor(tokenizer, image_size=896, image_token_span=case["img_token_span"])
    with pytest.raises(DataError, match="would cut an image"):
        processor.encode(example_of(case), max_length=case["max_length"], truncation_strategy="right")


@pytest.mark.parametrize("case", [c for c in CASES if c["name"].startswith("over_long")], ids=name)
def test_cutting_the_end_off_equals_upstreams_cut(case, tokenizer):
    processor = PathProcessor(tokenizer, image_size=896, image_token_span=case["img_token_span"])
    row = processor.encode(example_of(case), max_length=case["max_length"], truncation_strategy="right")
    length = sum(spread(case["expected_attention_mask_rle"]))
    assert row["input_ids"].tolist() == spread(case["expected_input_ids_rle"])[:length]
    assert row["labels"].tolist() == spread(case["expected_labels_rle"])[:length]


def test_a_literal_end_of_text_stays_visible_to_the_model(tokenizer):
    """Upstream masks it as if it were padding; ours takes the mask from the row's length."""
    case = next(c for c in CASES if c["name"] == "special_token_in_text")
    processor = MonkeyProcessor(tokenizer, image_size=896, image_token_span=1280)
    batch = processor.collate([processor.encode(example_of(case))])
    assert torch.equal(batch["attention_mask"], torch.ones_like(batch["input_ids"]))
