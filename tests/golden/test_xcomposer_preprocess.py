"""`preprocess.json`: upstream's own prompt, tokens, interleaving and label mask, reproduced by our encoder."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from vocabularies import train_vocabulary

from vlm_lora_plugin.data.reading import RowFormat, parse_row
from vlm_lora_plugin.data.rows.rules import RowRules
from vlm_lora_plugin.errors import DataError, TooLongError
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_xcomposer.configuration import TURN_END_FROM_END, XComposerConfig
from vlm_lora_xcomposer.processing import XComposerProcessor
from vlm_lora_xcomposer.prompt import ANSWER_HEADER, TURN_END, upstream_labels, upstream_text
from vlm_lora_xcomposer.records import parse_record
from vlm_lora_xcomposer.tokenization import load_vocabulary

DOCUMENT = json.loads((Path(__file__).parent / "xcomposer" / "preprocess.json").read_text("utf-8"))
CASES = DOCUMENT["examples"]
FOLDER = Path(__file__).parents[3] / "shared" / "golden" / "xcomposer" / "tokenizer"
FORM = RowFormat.of(get_manager().family("xcomposer"), RowRules(upstream_labels=True))
VARIANTS = {"4khd": "xcomposer2_4khd", "2.5": "xcomposer2_5"}

needs_vocabulary = pytest.mark.skipif(
    not (FOLDER / "tokenizer.model").exists(),
    reason="InternLM2's vocabulary has its own licence and is read from <repository>/../shared/golden, absent here",
)


def name(case):
    return f"{case['variant']}-{case['title']}"


def is_fault(case):
    """Whether upstream trains on something else than the row's author can have meant."""
    return case["title"] == "two placeholders but one image" or (
        case["variant"] == "4khd" and case["title"] == "image given but no placeholder in the text"
    )


def leaves_nothing(case):
    """Whether upstream's cut leaves no label that counts; the first one is predicted from nothing."""
    return any(set(labels[1:]) == {-100} for labels in expected(case, "labels"))


def expected(case, key):
    """One list a row, the run lengths spread out."""
    return [
        list(chain.from_iterable([item[0]] * item[1] if isinstance(item, list) else [item] for item in row))
        for row in case["expected"][key]
    ]


def rows_of(case):
    return case["example"] if isinstance(case["example"], list) else [case["example"]]


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary(FOLDER)


@pytest.fixture(scope="module")
def made_vocabulary(tmp_path_factory):
    return load_vocabulary(train_vocabulary(tmp_path_factory.mktemp("vocabulary")))


class Pictures(XComposerProcessor):
    """Gives each image the crops of the case, without opening files that do not exist."""

    grids = ()

    def load_images(self, example, count):
        side = self.config.image_size
        return [torch.zeros(3, rows * side, columns * side) for rows, columns in self.grids[:count]]


def encode(case, vocabulary, **sizes):
    processor = Pictures(vocabulary, XComposerConfig(variant=VARIANTS[case["variant"]], **sizes))
    features = []
    for number, row in enumerate(rows_of(case)):
        processor.grids = case["image_grids_hw"][number] if case["image_grids_hw"] else ()
        example = parse_row(row, Path(), name(case), FORM)
        features.append(processor.encode(example, max_length=case["max_length"], truncation_strategy="right"))
    return processor, features


def cases(wanted):
    return [pytest.param(case, id=name(case)) for case in CASES if wanted(case)]


@needs_vocabulary
@pytest.mark.parametrize("text", DOCUMENT["raw_strings"], ids=lambda text: repr(text["text"]))
def test_token_ids_equal_upstreams(text, vocabulary):
    ids = vocabulary.token_ids(text["text"], special=True)
    assert ids == text["ids_no_bos"]
    assert [vocabulary.tokenizer.bos_token_id, *ids] == text["ids_bos"]


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_prompt_equals_upstreams(case):
    texts = [upstream_text(parse_record(row, Path(), "row").messages) for row in rows_of(case)]
    assert [text.replace("<image>", "<ImageHere>") for text in texts] == case["rendered_text"]


@needs_vocabulary
@pytest.mark.parametrize("case", cases(lambda case: not is_fault(case) and not leaves_nothing(case)))
def test_ids_labels_and_masks_equal_upstreams(case, vocabulary):
    processor, features = encode(case, vocabulary)
    batch = processor.collate(features)
    images = batch["input_ids"] == processor.config.image_token_id
    assert batch["input_ids"].masked_fill(images, -100).tolist() == expected(case, "input_ids")
    assert batch["labels"].tolist() == expected(case, "labels")
    assert batch["attention_mask"].tolist() == expected(case, "attention_mask")
    assert images.int().tolist() == expected(case, "im_mask")
    assert [sum(row) for row in images.int().tolist()] == [sum(counts) for counts in case["image_tokens"] or [[0]] * 2][
        : len(features)
    ]


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_label_mask_alone_equals_upstreams_in_every_case(case):
    for ids, labels, mask in zip(
        *(expected(case, key) for key in ("input_ids", "labels", "attention_mask")), strict=True
    ):
        row = torch.tensor(ids)[: sum(mask)]
        ours = upstream_labels(row, turn_end_id=92542, end_id=2, header=6).tolist()
        assert ours == labels[: sum(mask)]


@needs_vocabulary
@pytest.mark.parametrize("case", cases(leaves_nothing))
def test_a_cut_that_leaves_no_label_is_an_error(case, vocabulary):
    config = XComposerConfig(variant=VARIANTS[case["variant"]])
    processor = XComposerProcessor(vocabulary, config, hd_num=1)  # one crop, as in these cases
    example = parse_row(case["example"], Path(), name(case), FORM)
    sizes = [(config.image_size, config.image_size)] * len(example.images)
    with pytest.raises(TooLongError, match=f"max_length is {case['max_length']}, and cut"):
        processor.measure(example, sizes, max_length=case["max_length"], truncation_strategy="right")


@pytest.mark.parametrize("case", cases(is_fault))
def test_images_and_places_that_do_not_match_are_an_error(case, made_vocabulary):
    with pytest.raises(DataError, match=r"<ImageHere> in the conversation, 1 in `image`"):
        encode(case, made_vocabulary)


def is_whole(case):
    """Whether nothing is cut off, and no header, longer in another vocabulary, covers all that upstream learns from."""
    return (
        not is_fault(case)
        and "starts with the assistant" not in case["title"]
        and "cut" not in case["title"]
        and "truncated" not in case["title"]
    )


@pytest.mark.parametrize("case", cases(is_whole))
def test_with_another_vocabulary_the_ids_say_the_prompt_and_the_label_mask_follows_upstreams_rule(
    case, made_vocabulary
):
    turn_end = made_vocabulary.token_ids(TURN_END, special=True)[0]
    header = len(made_vocabulary.token_ids(ANSWER_HEADER, special=True))
    places = {"vocab_size": turn_end + TURN_END_FROM_END, "image_token_id": 1_000_000}
    processor, features = encode({**case, "max_length": 100_000}, made_vocabulary, **places)
    assert processor.config.turn_end_id == turn_end
    for feature, text in zip(features, case["rendered_text"], strict=True):
        ids, labels = feature["input_ids"], feature["labels"]
        words = ids[ids != processor.config.image_token_id].tolist()
        assert made_vocabulary.tokenizer.decode(words[1:]) == text.replace("<ImageHere>", "")
        learnt = labels != -100
        assert torch.equal(labels[learnt], ids[learnt])
        assert torch.equal(labels, upstream_labels(ids, turn_end_id=turn_end, end_id=2, header=header))
