from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch

from vlm_lora_monkey.processing import MonkeyProcessor
from vlm_lora_plugin.contract.example import Example, Message
from vlm_lora_plugin.data.pixels import load_pixels
from vlm_lora_plugin.errors import DataError, ModelError

END, START, CLOSE, PAD = 256, 470, 471, 472
IMAGE = [START, PAD, PAD, PAD, CLOSE]


def example(*contents, images=(), system=None, verbatim=False):
    messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
    if system is not None:
        messages.insert(0, Message("system", system))
    return Example(tuple(messages), tuple(images), origin="d.jsonl:4", verbatim=verbatim)


def ids(text):
    return list(text.encode())


def unsupervised(tokens):
    return [-100] * len(tokens)


def test_a_question_is_put_into_the_published_prompt(processor, picture):
    row = processor.encode(example("<image>\n What is this? ", "A cat.", images=[picture()]))
    prompt = [*IMAGE, *ids(" What is this? Answer: ")]
    answer = [*ids("A cat."), END]
    assert row["input_ids"].tolist() == prompt + answer
    assert row["labels"].tolist() == unsupervised(prompt) + answer
    assert row["input_ids"].dtype == row["labels"].dtype == torch.int64


def test_marks_and_text_are_joined_by_single_spaces(processor, picture):
    row = processor.encode_prompt(example("Is <image>  like<image><image> ?", "x", images=[picture()] * 3))
    expected = [*ids("Is "), *IMAGE, *ids(" like "), *IMAGE, *ids(" "), *IMAGE, *ids(" ? Answer: ")]
    assert row["input_ids"].tolist() == expected


def test_a_system_message_stands_before_the_first_question(processor):
    row = processor.encode(example("One?", "1", "Two?", "2", system="Be brief."))
    assert row["input_ids"].tolist() == [
        *ids("Be brief.\nOne? Answer: 1"),
        END,
        *ids("Two? Answer: 2"),
        END,
    ]


@pytest.mark.parametrize("verbatim", [True, False])
def test_every_answer_and_the_end_after_it_is_supervised(verbatim, processor):
    row = processor.encode(example("a", "bb", "c", "dd", verbatim=verbatim))
    learnt = row["labels"][row["labels"] != -100].tolist()
    assert learnt == [*ids("bb"), END, *ids("dd"), END]
    assert torch.equal(row["labels"][row["labels"] != -100], row["input_ids"][row["labels"] != -100])


def test_verbatim_text_is_kept_as_written(processor, picture):
    row = processor.encode(example("<image> q Answer: ", " a ", images=[picture()], verbatim=True))
    assert row["input_ids"].tolist() == [*IMAGE, *ids(" q Answer:  a "), END]


def test_an_empty_answer_teaches_the_end(processor):
    assert processor.count_tokens(example("q", "", verbatim=True)) == (2, 1)


def test_special_text_is_special_in_verbatim_rows_alone(processor):
    text = "a<|endoftext|>b"
    assert processor.encode(example("q", text, verbatim=True))["labels"].tolist() == [-100, 97, END, 98, END]
    row = processor.encode(example("q", text))
    assert row["labels"].tolist()[-len(text) - 1 :] == [*ids(text), END]


@pytest.mark.parametrize("tag", ["<img>", "</img>", "<imgpad>"])
def test_a_lone_image_tag_is_text_in_messages_and_an_error_in_verbatim_rows(tag, processor):
    row = processor.encode(example(f"the {tag} tag", "x"))
    assert row["input_ids"].tolist() == [*ids(f"the {tag} tag Answer: x"), END]
    with pytest.raises(DataError, match=r"d\.jsonl:4: a lone <img>"):
        processor.encode(example(f"the {tag} tag", "x", verbatim=True))


def test_an_inline_image_path_in_messages_is_an_error_rather_than_text(processor):
    with pytest.raises(DataError, match=r"d\.jsonl:4: .*'<img>a\.png</img>'") as caught:
        processor.count_tokens(example("<img>a.png</img> What?", "x"))
    assert "<image>" in caught.value.fix


def test_pixels_stand_in_the_order_of_the_marks(processor, picture):
    paths = [picture("a.png", (255, 0, 0)), picture("b.png", (0, 0, 255))]
    row = processor.encode(example("<image> or <image>?", "a", images=[paths[0], paths[1].read_bytes()]))
    assert row["pixel_values"].shape == (2, 3, 8, 8)
    for pixels, path in zip(row["pixel_values"], paths, strict=True):
        assert torch.equal(pixels, load_pixels(path, 8))


def test_a_row_without_images_has_no_pixels(processor):
    assert set(processor.encode(example("q", "a"))) == {"input_ids", "labels"}


def test_a_prompt_is_everything_before_the_last_answer(processor, picture):
    whole = example("<image>One?", "1", "Two?", "2", images=[picture()])
    row = processor.encode_prompt(whole)
    assert row["input_ids"].tolist() == [*IMAGE, *ids(" One? Answer: 1"), END, *ids("Two? Answer: ")]
    assert row["pixel_values"].shape == (1, 3, 8, 8)
    trained = processor.encode(whole)["input_ids"].tolist()
    assert trained == [*row["input_ids"].tolist(), *ids("2"), END]


def test_a_prompt_needs_no_answer(processor):
    assert torch.equal(
        processor.encode_prompt(example("q"))["input_ids"], processor.encode_prompt(example("q", "a"))["input_ids"]
    )


def test_tokens_are_counted_without_opening_images(processor, tmp_path):
    row = example("<image>q", "aa", images=[tmp_path / "nowhere.png"])
    assert processor.count_tokens(row) == (len(IMAGE) + len(" q Answer: ") + 3, 3)


def test_a_missing_image_names_the_row(processor, tmp_path):
    with pytest.raises(DataError, match=r"d\.jsonl:4: there is no image"):
        processor.encode(example("<image>q", "a", images=[tmp_path / "nowhere.png"]))


def test_too_long_a_row_is_an_error_with_both_remedies(processor):
    row = example("q", "a" * 20, verbatim=True)
    assert len(processor.encode(row, max_length=22)["input_ids"]) == 22
    with pytest.raises(DataError, match=r"d\.jsonl:4: 22 tokens are needed, max_length is 21") as caught:
        processor.encode(row, max_length=21)
    assert "max_length" in caught.value.fix
    assert "truncation_strategy" in caught.value.fix


def test_cutting_takes_from_the_end(processor):
    row = example("q", "abc", verbatim=True)
    whole, cut = processor.encode(row), processor.encode(row, max_length=3, truncation_strategy="right")
    for key in ("input_ids", "labels"):
        assert cut[key].tolist() == whole[key].tolist()[:3]


@pytest.mark.parametrize("max_length", [6, 10])
def test_cutting_never_takes_an_image(max_length, processor, picture):
    row = example("<image>", "a", "<image>", "b", images=[picture()] * 2, verbatim=True)
    assert len(processor.encode(row, max_length=12, truncation_strategy="right")["input_ids"]) == 12
    with pytest.raises(DataError, match=r"d\.jsonl:4: .*would cut an image"):
        processor.encode(row, max_length=max_length, truncation_strategy="right")


def test_cutting_every_answer_away_is_an_error(processor):
    with pytest.raises(DataError, match=r"d\.jsonl:4: .*no token of an answer is left"):
        processor.encode(example("qqqq", "a", verbatim=True), max_length=4, truncation_strategy="right")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([("user", "a"), ("user", "b")], "message 2 is the user's, not the assistant's"),
        ([("assistant", "a")], "message 1 is the assistant's, not the user's"),
        ([("user", "a"), ("system", "b")], "message 2 is the system's"),
        ([("system", "a")], "there is no user message"),
        ([], "there is no user message"),
        ([("user", "a")], "nothing to learn"),
        ([("user", "a"), ("assistant", "b"), ("user", "c")], "nothing to learn"),
    ],
)
@pytest.mark.parametrize("verbatim", [True, False])
def test_turns_must_alternate_and_end_with_an_answer(messages, words, verbatim, processor):
    row = Example(tuple(Message(*m) for m in messages), origin="d.jsonl:4", verbatim=verbatim)
    with pytest.raises(DataError, match=rf"d\.jsonl:4: .*{words}"):
        processor.encode(row)


def test_marks_and_images_must_agree(processor, picture):
    with pytest.raises(DataError, match="1 <image> marks in the messages, 2 images"):
        processor.encode(example("<image>", "a", images=[picture()] * 2))


def test_an_image_in_an_answer_is_an_error(processor, picture):
    with pytest.raises(DataError, match="outside the user's messages"):
        processor.encode(example("q", "<image>", images=[picture()]))


def test_a_batch_holds_padded_rows_and_the_images_of_all(processor, picture):
    red, blue = picture("r.png", (255, 0, 0)), picture("b.png", (0, 0, 255))
    rows = [
        processor.encode(example("<image><image>", "ab", images=[red, blue])),
        processor.encode(example("q", "a")),
        processor.encode(example("<image>", "a", images=[blue])),
    ]
    batch = processor.collate(rows)
    longest = max(len(row["input_ids"]) for row in rows)
    assert {key: tuple(batch[key].shape) for key in batch} == {
        "input_ids": (3, longest),
        "attention_mask": (3, longest),
        "labels": (3, longest),
        "pixel_values": (3, 3, 8, 8),
    }
    for number, row in enumerate(rows):
        length = len(row["input_ids"])
        assert torch.equal(batch["input_ids"][number, :length], row["input_ids"])
        assert batch["input_ids"][number, length:].eq(END).all()
        assert batch["attention_mask"][number].tolist() == [1] * length + [0] * (longest - length)
        assert batch["input_ids"][number, length - 1] == END  # the answer's end is attended to
    assert torch.equal(batch["pixel_values"], torch.cat([rows[0]["pixel_values"], rows[2]["pixel_values"]]))


def test_a_batch_without_images_has_no_pixels(processor):
    assert "pixel_values" not in processor.collate([processor.encode(example("q", "a"))])


def test_it_survives_pickling(processor, picture):
    row = example("<image>q", "a", images=[picture()])
    again = pickle.loads(pickle.dumps(processor)).encode(row)
    assert all(torch.equal(again[key], value) for key, value in processor.encode(row).items())


def config(**changes):
    fields = {"vision": SimpleNamespace(image_size=8), "image_token_span": 3, "image_start_id": START}
    return SimpleNamespace(**{**fields, **changes})


def test_it_is_saved_and_read_with_the_models_config(processor, tmp_path):
    processor.save_pretrained(tmp_path / "saved")
    again = MonkeyProcessor.from_pretrained(tmp_path / "saved", config())
    row = example("<ref>q</ref>é", "a")
    assert torch.equal(again.encode(row)["input_ids"], processor.encode(row)["input_ids"])
    assert (again.image_size, again.image_token_span) == (8, 3)


def test_a_vocabulary_of_another_model_is_refused(vocabulary):
    with pytest.raises(ModelError, match=r"gives <img> the id 470, config\.json says 151857"):
        MonkeyProcessor.from_pretrained(vocabulary, config(image_start_id=151857))
