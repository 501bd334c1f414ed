"""What the base class of processors does for a family that writes its prompt and its pixels alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from vlm_lora_plugin.contract import Example, MeasuringProcessor, Message, Processor
from vlm_lora_plugin.data.encoding import Encoded, EncodingProcessor, check_ends_with_answer, image_size, read_rgb
from vlm_lora_plugin.errors import DataError

IMAGE, END = 256, 257


class Letters(EncodingProcessor):
    """Bytes are tokens, and of an image the first token says how many follow."""

    tokenizer = SimpleNamespace(pad_token_id=0)
    image_span = 3

    def __init__(self):
        self.opened = []

    def encode_row(self, example, image_tokens, *, answered):
        messages = list(example.messages)
        if answered:
            check_ends_with_answer(messages, example.origin)
        else:
            del messages[-1]
        encoded, images = Encoded(), ([IMAGE] * tokens for tokens in image_tokens)
        for message in messages:
            encoded.append_marked(message.content, str.encode, images, supervised=message.supervised)
            encoded.append([END], supervised=message.supervised)
        return encoded

    def load_image(self, image, origin):
        self.opened.append(image)
        width, height = image_size(image, origin=origin)
        return torch.ones(3, height, width)

    def save_pretrained(self, folder):
        """Nothing to write."""


class AsWideAsTheImage(Letters):
    """An image takes as many tokens as it is pixels wide."""

    image_span = None

    def tokens_of_pixels(self, pixels):
        return pixels.shape[2]

    def tokens_of_size(self, width, height, origin):
        return width


class Dropping(Letters):
    drops_images = True


@pytest.fixture
def example(tmp_path):
    """Two questions with an image each, 2 and 5 pixels wide."""

    def picture(width):
        Image.new("RGB", (width, 4)).save(tmp_path / f"{width}.png")
        return tmp_path / f"{width}.png"

    turns = [("user", "<image>q"), ("assistant", "abc"), ("user", "<image>r"), ("assistant", "d")]
    messages = tuple(Message(role, text) for role, text in turns)
    return Example(messages, (picture(2), picture(5)), "data.jsonl:4")


@pytest.mark.parametrize("kind", [Letters, AsWideAsTheImage])
def test_a_processor_is_what_the_contract_asks_for(kind):
    processor: Processor = kind()
    assert isinstance(processor, MeasuringProcessor)


def test_an_answer_and_its_end_are_learnt(example):
    row = AsWideAsTheImage().encode(example)
    expected = [IMAGE, IMAGE, *b"q", END, *b"abc", END, *[IMAGE] * 5, *b"r", END, *b"d", END]
    assert row["input_ids"].tolist() == expected
    assert row["labels"][row["labels"] != -100].tolist() == [*b"abc", END, *b"d", END]
    assert [image.shape for image in row["pixel_values"]] == [(3, 4, 2), (3, 4, 5)]


def test_a_prompt_ends_before_the_last_answer(example):
    prompt = AsWideAsTheImage().encode_prompt(example)
    assert prompt["input_ids"].tolist()[-2:] == [*b"r", END]
    assert prompt.keys() == {"input_ids", "pixel_values"}


@pytest.mark.parametrize("kind", [Letters, AsWideAsTheImage, Dropping])
@pytest.mark.parametrize("strategy", ["raise", "right"])
def test_measuring_says_what_encoding_gives_or_raises_at_every_length(kind, strategy, example):
    processor = kind()
    processor.load_image = lambda image, origin: torch.ones(3, 4, image_size(image, origin=origin)[0])
    processor.image_tensors = lambda images: {"pixel_values": images}
    sizes = [image_size(image) for image in example.images]

    def outcome(call, *arguments, **limits):
        try:
            return call(example, *arguments, **limits)
        except DataError as error:
            return error.what

    for max_length in range(1, 25):
        limits = {"max_length": max_length, "truncation_strategy": strategy}
        row = outcome(processor.encode, **limits)
        if not isinstance(row, str):
            row = len(row["input_ids"]), int((row["labels"][1:] != -100).sum())
        assert outcome(processor.measure, sizes, **limits) == row
    assert processor.count_tokens(example) == processor.measure(example, sizes)


def test_images_behind_the_cut_are_refused_or_left_out(example):
    cut = {"max_length": 8, "truncation_strategy": "right"}
    with pytest.raises(DataError, match=r"data\.jsonl:4: cutting 16 tokens to max_length 8 would cut an image"):
        Letters().encode(example, **cut)
    dropping = Dropping()
    assert len(dropping.encode(example, **cut)["pixel_values"]) == 1
    assert dropping.opened == [example.images[0]]
    with pytest.raises(DataError, match="would cut an image"):
        dropping.encode(example, max_length=11, truncation_strategy="right")


@pytest.mark.parametrize("kind", [AsWideAsTheImage, Dropping])
def test_each_image_is_opened_once(kind, example):
    processor = kind()
    processor.image_tensors = lambda images: {"pixel_values": images}
    processor.encode(example)
    assert processor.opened == list(example.images)


def test_a_text_that_cannot_be_used_is_named_before_an_image_is_opened(example):
    processor = Letters()
    with pytest.raises(DataError, match="nothing to learn"):
        processor.encode(Example(example.messages[:-1], example.images))
    assert not processor.opened


def test_shortening_takes_further_values_of_the_tokens_with_them():
    encoded = Encoded([1, 2, 3], [-100, 2, 3], [(0, 1), (2, 3)], {"kinds": torch.tensor([1, 0, 1])})
    cut = encoded.shortened(2)
    assert (cut.ids, cut.labels, cut.blocks) == ([1, 2], [-100, 2], [(0, 1)])
    assert cut.extra["kinds"].tolist() == [1, 0]


def test_what_families_need_of_images_comes_from_the_same_module(example):
    assert read_rgb(example.images[0]).size == image_size(example.images[0])
