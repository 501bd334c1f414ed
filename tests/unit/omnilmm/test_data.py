"""Rows in the MiniCPM-V form, prompts and what is refused."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from vlm_lora_omnilmm.processing import OmniLMMProcessor
from vlm_lora_omnilmm.records import parse_record
from vlm_lora_omnilmm.tiny import WORDS
from vlm_lora_omnilmm.tokenization import tiny_tokenizer
from vlm_lora_plugin.contract.example import Example, Message
from vlm_lora_plugin.data.reading import RowFormat, parse_row
from vlm_lora_plugin.errors import DataError
from vlm_lora_plugin.plugins.manager import get_manager


@pytest.fixture(scope="module")
def processor():
    return OmniLMMProcessor(tiny_tokenizer(WORDS), image_size=32, num_query=4)


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (40, 20), colour).save(tmp_path / name)
    return tmp_path


def conversation(*contents, **row):
    roles = ("user", "assistant")
    return {"conversations": [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)], **row}


def read(row, folder):
    return parse_row(row, folder, "data.json:1", RowFormat.of(get_manager().family("omnilmm")))


def text_of(processor, row):
    return processor.tokenizer.decode(row["input_ids"])


BLOCK = "<im_start>" + "<im_patch>" * 4 + "<im_end>"


def test_an_image_without_a_mark_comes_first(processor, folder):
    row = processor.encode(read(conversation("What?", "Red.", image="a.png"), folder))

    assert f"<|user|>\n{BLOCK} \nWhat?</s>" in text_of(processor, row)
    assert row["pixel_values"].shape == (1, 3, 32, 32)


def test_a_mark_is_replaced_where_it_stands(processor, folder):
    row = processor.encode(read(conversation("See <image>\nWhat?", "Red.", image="a.png"), folder))

    assert f"See {BLOCK} \nWhat?" in text_of(processor, row)


def test_numbered_images_go_where_their_marks_stand(processor, folder):
    images = {"<image_00>": "a.png", "<image_01>": "b.png"}
    example = read(conversation("<image_01>\nWhat?", "Blue.", "And <image_00>?", "Red.", image=images), folder)

    assert [path.name for path in example.images] == ["b.png", "a.png"]
    row = processor.encode(example)
    assert row["pixel_values"][0, 2].mean() > row["pixel_values"][1, 2].mean()
    assert text_of(processor, row).count(BLOCK) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (conversation("<image_00> <image_01>", "x", image={"<image_00>": "a.png"}), "<image_01> is not in `image`"),
        (
            conversation("<image_00>", "x", image={"<image_00>": "a.png", "<image_01>": "b.png"}),
            "<image_01> of `image` stands in no turn",
        ),
        (conversation("<image>", "x", image={"<image_00>": "a.png"}), "<image> is not in `image`"),
        (conversation("q", "a", image=["a.png"]), "`image` must be a path"),
        (conversation("q", "a", image={"<image_00>": 3}), "must be a path"),
        ({"conversations": []}, "must be a list of turns"),
        ({"conversations": ["q"]}, "turn 1 is not an object"),
        ({"conversations": [{"role": "user"}]}, "needs `role` and `content`"),
        ({"conversations": [{"role": "robot", "content": "q"}]}, "is from 'robot'"),
    ],
)
def test_a_broken_row_is_named(row, message, folder):
    with pytest.raises(DataError, match=message):
        read(row, folder)


def test_a_row_without_conversations_is_of_another_form(folder):
    assert parse_record({"text": "x"}, folder, "o") is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (conversation("<image>\n<image>\nWhat?", "x", image="a.png"), "2 <image> marks in the messages, 1 images"),
        (conversation("q </s> r", "x"), "</s> stands in"),
        (conversation("<im_start>", "x"), "<im_start> stands in"),
        (conversation("q"), "nothing to learn"),
    ],
)
def test_a_row_that_cannot_be_encoded_is_named(row, message, processor, folder):
    with pytest.raises(DataError, match=message):
        processor.encode(read(row, folder))


def test_a_mark_that_touches_the_text_gets_upstreams_line_break(processor, folder):
    row = {
        "messages": [{"role": "user", "content": "<image>Which digit?"}, {"role": "assistant", "content": "3"}],
        "images": ["a.png"],
    }
    encoded = processor.encode(read(row, folder))

    assert f"{BLOCK} \nWhich digit?</s>" in text_of(processor, encoded)
    assert processor.tokenizer.decode(encoded["labels"][encoded["labels"] != -100]) == "3</s>"


def test_images_behind_the_cut_are_left_out(processor, folder):
    images = {"<image_00>": "a.png", "<image_01>": "b.png"}
    example = read(conversation("<image_00> a?", "one", "<image_01> b?", "two", image=images), folder)
    whole = processor.encode(example)
    starts = (whole["input_ids"] == processor.image_start_id).nonzero()[:, 0].tolist()

    cut = processor.encode(example, max_length=starts[1], truncation_strategy="right")

    assert len(cut["input_ids"]) == starts[1]
    assert len(cut["pixel_values"]) == 1
    for inside in range(starts[1] + 1, starts[1] + 6):
        with pytest.raises(DataError, match="would cut an image"):
            processor.encode(example, max_length=inside, truncation_strategy="right")
    kept = processor.encode(example, max_length=starts[1] + 6, truncation_strategy="right")
    assert len(kept["pixel_values"]) == 2
    with pytest.raises(DataError, match="max_length is"):
        processor.encode(example, max_length=starts[1])


def test_answers_are_supervised_whatever_the_tokenizer_does_with_spaces():
    """Under transformers 5's default rule upstream's search finds no answer at all."""
    from tokenizers import normalizers, pre_tokenizers

    tokenizer = tiny_tokenizer(WORDS)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    processor = OmniLMMProcessor(tokenizer, image_size=32, num_query=4)
    row = processor.encode(Example((Message("user", "Which digit?"), Message("assistant", "3 or 4"))))

    assert tokenizer.decode(row["labels"][row["labels"] != -100]) == "3 or 4</s>"


def test_padding_equals_the_end_token_and_the_mask_tells_them_apart(processor):
    rows = [
        processor.encode(Example((Message("user", "q"), Message("assistant", answer)))) for answer in ("3", "3 and 4")
    ]
    batch = processor.collate(rows)

    assert torch.equal(batch["attention_mask"].sum(1), torch.tensor([len(row["input_ids"]) for row in rows]))
    assert "pixel_values" not in batch
    assert batch["labels"][0, batch["attention_mask"][0].sum() - 1] == processor.tokenizer.eos_token_id
