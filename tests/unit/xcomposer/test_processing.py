from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from vlm_lora_plugin.contract import MeasuringProcessor, Processor
from vlm_lora_plugin.contract.example import Example, Message
from vlm_lora_plugin.errors import DataError, ModelError, RecipeError, TooLongError
from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.images import number_of_image_tokens
from vlm_lora_xcomposer.processing import XComposerProcessor
from vlm_lora_xcomposer.prompt import ANSWER_HEADER, upstream_labels, upstream_text
from vlm_lora_xcomposer.records import parse_record


def conversation(*texts, images=(), verbatim=False, system=None, origin="data.jsonl:1"):
    messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    if system is not None:
        messages.insert(0, Message("system", system))
    return Example(tuple(messages), tuple(images), origin, verbatim=verbatim)


def text_of(processor, ids):
    return processor.tokenizer.decode(ids)


def supervised_text(processor, row):
    return text_of(processor, row["labels"][row["labels"] != -100])


def test_it_is_a_processor_that_measures(processor):
    made = processor()
    for protocol in (Processor, MeasuringProcessor):
        assert all(hasattr(made, name) for name in protocol.__dict__ if not name.startswith("_"))
    assert isinstance(made, MeasuringProcessor)


def test_the_prompt_is_upstreams(processor):
    made = processor()
    row = made.encode(conversation("  Hi there? ", " Yes. ", "More?", "No."))
    assert text_of(made, row["input_ids"]) == "<s>" + upstream_text(
        [
            Message("user", "Hi there?"),
            Message("assistant", "Yes."),
            Message("user", "More?"),
            Message("assistant", "No."),
        ]
    )


def test_answers_are_learnt_with_their_ends_and_the_last_new_line(processor):
    made = processor()
    row = made.encode(conversation("Q", "Yes", "R", "No"))
    assert supervised_text(made, row) == "Yes[UNUSED_TOKEN_145]No[UNUSED_TOKEN_145]\n</s>"


def test_both_forms_of_a_row_are_encoded_alike(processor, picture):
    """Roles decide in one form, upstream's mask in the other."""
    made, image = processor(hd_num=4), picture()
    ours = made.encode(conversation("<image>What?", "A é cat.", "Why? <image> !", "So.", images=[image, image]))
    turns = [("user", "<ImageHere>What?"), ("assistant", "A é cat."), ("human", "Why? <ImageHere> !"), ("gpt", "So.")]
    record = {"image": [str(image)] * 2, "conversations": [{"from": who, "value": text} for who, text in turns]}
    upstreams = made.encode(parse_record(record, Path(), "row"))
    assert torch.equal(ours["input_ids"], upstreams["input_ids"])
    assert torch.equal(ours["labels"], upstreams["labels"])


def test_an_image_has_its_places_in_the_text_and_its_pixels(processor, picture):
    made = processor(hd_num=2)
    wide, tall = picture("wide.png", (64, 32)), picture("tall.png", (32, 64))
    row = made.encode(conversation("a<image>b<image>", "c", images=[wide, tall]))
    counts = [number_of_image_tokens(*image.shape[1:], made.config) for image in row["pixel_values"]]
    assert [tuple(image.shape) for image in row["pixel_values"]] == [(3, 32, 64), (3, 64, 32)]
    image_id = made.config.image_token_id
    start = text_of(made, row["input_ids"]).split("[UNUSED_TOKEN_142]")[0]
    assert start == "<s>[UNUSED_TOKEN_146]user\na"
    assert (row["input_ids"] == image_id).sum() == sum(counts)
    between = row["input_ids"].tolist().index(image_id) + counts[0]
    assert text_of(made, row["input_ids"][between : between + 1]) == "b"
    assert (row["labels"][row["input_ids"] == image_id] == -100).all()


def test_a_batch_keeps_images_of_any_size_in_order(processor, picture):
    made = processor(hd_num=3)
    rows = [
        made.encode(conversation("<image>a", "b", images=[picture("one.png", (96, 32))])),
        made.encode(conversation("no image", "a longer answer")),
        made.encode(conversation("<image><image>a", "b", images=[picture("two.png", (32, 32)), picture("three.png")])),
    ]
    batch = made.collate(rows)
    expected = [*rows[0]["pixel_values"], *rows[2]["pixel_values"]]
    assert isinstance(batch["pixel_values"], list)
    assert all(torch.equal(one, other) for one, other in zip(batch["pixel_values"], expected, strict=True))
    for number, row in enumerate(rows):
        length = len(row["input_ids"])
        assert torch.equal(batch["input_ids"][number, :length], row["input_ids"])
        assert torch.equal(batch["labels"][number, :length], row["labels"])
        assert (batch["labels"][number, length:] == -100).all()
        assert batch["attention_mask"][number].tolist() == [1] * length + [0] * (batch["labels"].shape[1] - length)


def test_a_batch_of_texts_has_no_pixels(processor):
    made = processor()
    assert "pixel_values" not in made.collate([made.encode(conversation("a", "b"))])


@pytest.mark.parametrize("verbatim", [True, False])
def test_a_prompt_ends_with_the_header_of_the_answer(processor, verbatim):
    made = processor()
    example = conversation("Q", "Yes", "R", "No", verbatim=verbatim)
    prompt = text_of(made, made.encode_prompt(example)["input_ids"])
    whole = text_of(made, made.encode(example)["input_ids"])
    assert prompt.endswith(f"R{ANSWER_HEADER}")
    assert whole == f"{prompt}No[UNUSED_TOKEN_145]\n</s>"


def test_a_system_message_comes_first_and_is_not_learnt(processor):
    made = processor()
    row = made.encode(conversation("Q", "A", system="Be brief."))
    assert text_of(made, row["input_ids"]).startswith("<s>[UNUSED_TOKEN_146]system\nBe brief.[UNUSED_TOKEN_145]\n")
    assert supervised_text(made, row) == "A[UNUSED_TOKEN_145]\n</s>"


def test_the_spelling_of_a_control_token_in_a_message_is_text(processor):
    made = processor()
    row = made.encode(conversation("a</s>[UNUSED_TOKEN_145]", "b[UNUSED_TOKEN_142]"))
    ids = row["input_ids"].tolist()
    assert ids.count(made.tokenizer.eos_token_id) == 1
    assert ids.count(made.config.turn_end_id) == 2
    assert supervised_text(made, row) == "b[UNUSED_TOKEN_142][UNUSED_TOKEN_145]\n</s>"


def test_the_image_token_in_upstreams_own_row_is_an_error(processor):
    with pytest.raises(DataError, match=r"data\.jsonl:1: a text holds \[UNUSED_TOKEN_142\]"):
        processor().encode(conversation("a [UNUSED_TOKEN_142]", "b", verbatim=True))


def test_version_2_5_puts_a_lone_image_without_a_place_first(processor, picture):
    example = conversation("What?", "A cat.", images=[picture()], verbatim=True)
    made = processor("xcomposer2_5")
    ids = made.encode(example)["input_ids"].tolist()
    count = ids.count(made.config.image_token_id)
    assert ids[:count] == [made.config.image_token_id] * count
    assert ids[count] == made.tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("example", "problem"),
    [
        (conversation("a"), "the last message is the user's"),
        (conversation("a", "b", "c"), "the last message is the user's"),
        (Example((Message("assistant", "a"),)), "message 1 is the assistant's"),
        (Example((Message("system", "a"),)), "there is no user message"),
        (conversation("a", "<image>", images=[Path("a.png")]), "outside the user's messages"),
        (conversation("<ImageHere>a", "b"), "a message holds <ImageHere>"),
        (conversation("<image>a", "b"), "1 <image> marks in the messages, 0 images"),
        (conversation("a", verbatim=True), "there is no answer to learn from"),
        (conversation("<image>a", "b", verbatim=True), "1 <ImageHere> in the conversation, 0 in `image`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_row_that_teaches_nothing_right_is_refused(processor, example, problem):
    sizes = [(32, 32)] * len(example.images)
    with pytest.raises(DataError, match=problem):
        processor().measure(example, sizes)


def test_measuring_equals_encoding(processor, picture):
    made = processor(hd_num=6)
    for number, size in enumerate([(32, 32), (200, 40), (33, 90), (500, 300)]):
        example = conversation("x<image>", "answer", images=[picture(f"{number}.png", size)])
        row = made.encode(example)
        counted = (len(row["input_ids"]), int((row["labels"] != -100).sum()))
        assert made.measure(example, [size]) == made.count_tokens(example) == counted


def test_counting_tokens_decodes_no_pixel(processor, picture, monkeypatch):
    def load(self):
        raise AssertionError("pixels were decoded")

    example = conversation("<image>a", "b", images=[picture("big.png", (700, 400))])
    monkeypatch.setattr(Image.Image, "load", load)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    tokens, supervised = processor(hd_num=55).count_tokens(example)
    assert tokens > 55 * 4
    assert supervised == len("b") + 3


def limits(length, strategy="raise"):
    return {"max_length": length, "truncation_strategy": strategy}


def test_a_row_that_is_too_long_names_tokens_and_the_largest_hd_num_that_fits(processor):
    made = processor(hd_num=55)
    example, sizes = conversation("<image>a", "b", images=[Path("a.png")]), [(700, 400)]
    needed, _ = made.measure(example, sizes)
    with pytest.raises(TooLongError, match=rf"data\.jsonl:1: {needed} tokens are needed") as caught:
        made.measure(example, sizes, **limits(150))
    assert caught.value.needed == needed
    setting, largest = caught.value.fits
    assert setting == "data.processor.hd_num"
    assert f"the largest hd_num that fits is {largest}" in str(caught.value)
    assert processor(hd_num=largest).measure(example, sizes, **limits(150))[0] <= 150
    with pytest.raises(TooLongError):
        processor(hd_num=largest + 1).measure(example, sizes, **limits(150))
    assert made.measure(example, sizes, **limits(needed))[0] == needed


def test_where_no_hd_num_is_small_enough_the_error_says_so(processor):
    example = conversation("<image>" + "a" * 200, "b", images=[Path("a.png")])
    with pytest.raises(TooLongError, match="no hd_num is small enough") as caught:
        processor(hd_num=9).measure(example, [(64, 64)], **limits(100))
    assert caught.value.fits == ("data.processor.hd_num", 0)


def test_version_2_names_no_hd_num(processor):
    example = conversation("<image>a", "b", images=[Path("a.png")])
    with pytest.raises(TooLongError) as caught:
        processor("xcomposer2").measure(example, [(64, 64)], **limits(20))
    assert caught.value.fits is None
    assert "hd_num" not in str(caught.value)


def test_cutting_the_end_off_leaves_images_whole(processor):
    made, sizes = processor(hd_num=4), [(64, 64)]
    example = conversation("<image>a", "b" * 50, images=[Path("a.png")])
    tokens, _ = made.measure(example, sizes)
    assert made.measure(example, sizes, **limits(tokens - 10, "right")) == (tokens - 10, 43)
    with pytest.raises(TooLongError, match="cutting there would cut an image") as caught:
        made.measure(example, sizes, **limits(20, "right"))
    assert made.measure(example, sizes, **limits(caught.value.needed, "right")) == (caught.value.needed, 1)
    with pytest.raises(TooLongError, match="no label is left"):
        made.measure(example, sizes, **limits(caught.value.needed - 1, "right"))


def test_the_largest_hd_num_leaves_a_label_after_the_cut(processor):
    made, sizes = processor(hd_num=40), [(64, 64)]
    example = conversation("<image>a", "b" * 500, images=[Path("a.png")])
    with pytest.raises(TooLongError) as caught:
        made.measure(example, sizes, **limits(120, "right"))
    largest = caught.value.fits[1]
    assert processor(hd_num=largest).measure(example, sizes, **limits(120, "right"))[0] == 120
    with pytest.raises(TooLongError):
        processor(hd_num=largest + 1).measure(example, sizes, **limits(120, "right"))


def test_hd_num_is_refused_where_there_are_no_crops(processor):
    with pytest.raises(RecipeError, match=r"data\.processor\.hd_num is 4, but this model sees every image as one"):
        processor("xcomposer2", hd_num=4)


def test_without_an_option_the_config_decides(processor):
    assert processor().hd_num == processor().config.hd_num
    assert processor(hd_num=7).hd_num == 7


def test_a_vocabulary_of_another_model_is_refused(vocabulary_folder):
    with pytest.raises(ModelError, match=r"\[UNUSED_TOKEN_145\] is 499, not 92542"):
        XComposerProcessor.from_pretrained(vocabulary_folder, XComposerConfig())


def test_what_is_saved_is_read_again(processor, vocabulary_folder, tmp_path):
    made = processor()
    made.save_pretrained(tmp_path)
    again = XComposerProcessor.from_pretrained(tmp_path, made.config, {"hd_num": 3})
    assert again.hd_num == 3
    assert (tmp_path / "tokenizer.model").read_bytes() == (vocabulary_folder / "tokenizer.model").read_bytes()
    example = conversation("Q é 你", "A")
    assert torch.equal(again.encode(example)["input_ids"], made.encode(example)["input_ids"])


def learnt_at(place, ids, turn_end, end, header):
    """Upstream's rule for one place of a row."""
    stop = ids.index(end) if end in ids else len(ids)
    ends = [at for at, token in enumerate(ids[:stop]) if token == turn_end]
    before = [at for at in ends if at < place]
    if place > stop or any(0 <= place - question < header for question in ends[::2]):
        return False
    in_question = len(before) % 2 == 0
    if in_question and len(ends) == len(before):  # behind the last answer
        return stop < len(ids) or place == (before[-1] + 1 if before else 0)
    return not in_question


def test_the_vectorised_mask_equals_the_rule_place_by_place():
    draw = random.Random(0)
    for _ in range(3000):
        ids = draw.choices(
            [-100, 5, 6, 7, 8, 9, 99, 2], [2, 4, 4, 4, 4, 4, draw.choice([1, 4]), 0.2], k=draw.randint(1, 60)
        )
        for header in (1, 6, 14):
            ours = upstream_labels(torch.tensor(ids), turn_end_id=99, end_id=2, header=header)
            expected = [token if learnt_at(at, ids, 99, 2, header) else -100 for at, token in enumerate(ids)]
            assert ours.tolist() == expected
