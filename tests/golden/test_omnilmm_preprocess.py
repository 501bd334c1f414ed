"""`preprocess.json`: upstream's own preprocessing, reproduced exactly by our encoder."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from vlm_lora_omnilmm.processing import OmniLMMProcessor
from vlm_lora_omnilmm.tokenization import load_tokenizer
from vlm_lora_plugin.contract.example import IMAGE_MARK, Example, Message
from vlm_lora_plugin.data.reading import RowFormat, parse_row
from vlm_lora_plugin.data.rows.rules import RowRules
from vlm_lora_plugin.errors import DataError
from vlm_lora_plugin.plugins.manager import get_manager

FOLDER = Path(__file__).parent / "omnilmm"
DOCUMENT = json.loads((FOLDER / "preprocess.json").read_text("utf-8"))
CASES = {case["name"]: case for case in DOCUMENT["samples"] if case["pipeline"] == "omnilmm"}
QUERIES = 4
BLOCK = "<im_start>" + "<im_patch>" * QUERIES + "<im_end>"

FORM = RowFormat.of(get_manager().family("omnilmm"), RowRules(upstream_labels=True))

REFUSED = {
    # Upstream warns and supervises nothing.
    "truncated_in_first_question": "no token of an answer is left",
    # Upstream does not notice; its model fails later, or reads what follows as an image.
    "truncated_inside_image_block": "would cut an image",
    "error_two_users": "as the one before it",
}
GENERATION = ("generation_prompt", "generation_prompt_after_turns")
# A system message is refused by upstream, which puts its own first; ours takes its place.
OWN_SYSTEM = ("error_system_role",)
# Upstream supervises the user's turns too: so do rows in its format, while rows with `messages` do not.
OPENED_BY_THE_ASSISTANT = ("starts_with_assistant",)
PLAIN = [name for name in CASES if name not in (*REFUSED, *GENERATION, *OWN_SYSTEM, *OPENED_BY_THE_ASSISTANT)]


def spread(run_lengths):
    return list(chain.from_iterable([value] * count for value, count in run_lengths))


@pytest.fixture(scope="module")
def processor():
    tokenizer = load_tokenizer(FOLDER / "tokenizer" / "llama")
    return OmniLMMProcessor(tokenizer, image_size=28, num_query=QUERIES)


def example_of(case):
    """The example as a row of upstream's format; blocks that it writes out are marks and images in ours."""
    turns = json.loads(json.dumps(case["example"]).replace(BLOCK, IMAGE_MARK))
    record = {"conversations": turns}
    if case["expand_images"]:
        record["image"] = "image_wide.png"
    example = parse_row(record, FOLDER, case["name"], FORM)
    marks = sum(message.content.count(IMAGE_MARK) for message in example.messages)
    if not case["expand_images"]:
        return replace(example, images=(FOLDER / "image_wide.png",) * marks, verbatim=False)
    # Upstream replaces every mark of the first turn though a row brings one image.
    return replace(example, images=example.images * example.messages[0].content.count(IMAGE_MARK))


@pytest.mark.parametrize("name", PLAIN)
def test_ids_and_labels_equal_upstreams(name, processor):
    case = CASES[name]
    row = processor.encode(example_of(case), max_length=case["max_length"], truncation_strategy="right")

    assert row["input_ids"].tolist() == case["expected_input_ids"]
    assert row["labels"].tolist() == spread(case["expected_labels_rle"])
    batch = processor.collate([row])
    assert batch["attention_mask"][0].tolist() == spread(case["expected_attention_mask_rle"])


def test_most_cases_are_compared_exactly():
    assert len(PLAIN) == 16


@pytest.mark.parametrize("name", REFUSED)
def test_what_upstream_trains_on_wrongly_or_fails_on_is_an_error(name, processor):
    case = CASES[name]

    with pytest.raises(DataError, match=REFUSED[name]):
        processor.encode(example_of(case), max_length=case["max_length"], truncation_strategy="right")


@pytest.mark.parametrize("name", GENERATION)
def test_a_generation_prompt_equals_upstreams(name, processor):
    case = CASES[name]

    assert processor.encode_prompt(example_of(case))["input_ids"].tolist() == case["expected_input_ids"]


@pytest.mark.parametrize("name", OPENED_BY_THE_ASSISTANT)
def test_a_row_of_upstreams_format_opened_by_the_assistant_has_upstreams_labels(name, processor):
    case = CASES[name]
    row = processor.encode(replace(example_of(case), verbatim=True))

    assert row["input_ids"].tolist() == case["expected_input_ids"]
    assert row["labels"].tolist() == spread(case["expected_labels_rle"])


@pytest.mark.parametrize("name", OPENED_BY_THE_ASSISTANT)
@pytest.mark.parametrize("own_form", [False, True], ids=["messages", "own form"])
def test_without_upstreams_labels_a_row_opened_by_the_assistant_supervises_its_answers_alone(name, own_form, processor):
    case = CASES[name]
    row = processor.encode(replace(example_of(case), verbatim=own_form, by_roles=True))

    assert row["input_ids"].tolist() == case["expected_input_ids"]
    supervised = row["input_ids"][row["labels"] != -100]
    assert processor.tokenizer.decode(supervised) == "Hi.</s>Three.</s>"


def test_a_system_message_takes_the_place_of_upstreams(processor):
    case = CASES["error_system_role"]
    row = processor.encode(Example((Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "No"))))

    assert "Error" in json.dumps(case)
    assert processor.tokenizer.decode(row["input_ids"]).startswith("<s> <|system|>\nBe brief.</s>")
