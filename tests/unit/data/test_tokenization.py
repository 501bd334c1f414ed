from __future__ import annotations

import pickle

import pytest

from vlm_lora_monkey.tokenization import load_tokenizer, save_vocabulary, token_ids, write_tiny_vocabulary
from vlm_lora_plugin.errors import ModelError


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return load_tokenizer(vocabulary)


def test_the_tiny_vocabulary_has_one_id_a_byte_and_the_specials_after_them(tokenizer):
    assert tokenizer("aé").input_ids == [97, 0xC3, 0xA9]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|extra_0|>", "<|extra_204|>", "<ref>", "<img>", "</img>", "<imgpad>"]
    assert tokenizer.convert_tokens_to_ids(tokens) == [256, 257, 259, 463, 464, 470, 471, 472]
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id) == (473, 256, 256)


def test_text_is_composed_before_it_is_cut(tokenizer):
    assert tokenizer("e\u0301").input_ids == tokenizer("é").input_ids == [0xC3, 0xA9]


def test_special_text_is_special_only_where_asked_for(tokenizer):
    text = "a<|endoftext|><img>"
    assert token_ids(tokenizer, text, special=True) == [97, 256, 470]
    assert token_ids(tokenizer, text, special=False) == list(text.encode())


def test_grounding_tags_are_special_in_either_case(tokenizer):
    text = "<ref>a</ref><box>1</box><quad>2</quad>"
    expected = [464, 97, 465, 466, 49, 467, 468, 50, 469]
    assert token_ids(tokenizer, text, special=True) == expected
    assert token_ids(tokenizer, text, special=False) == expected


def test_reading_text_literally_leaves_the_tokenizer_as_it_was(tokenizer):
    token_ids(tokenizer, "<img>", special=False)
    assert tokenizer("<img>").input_ids == [470]


def test_longer_tokens_are_merged_by_rank(tmp_path):
    path = write_tiny_vocabulary(tmp_path)
    path.write_text(path.read_text() + "YmM= 256\nYWI= 257\nYWJj 258\n")  # bc, ab, abc
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("abc").input_ids == [258]
    assert tokenizer("abcd").input_ids == [258, 100]
    assert tokenizer("xab").input_ids == [120, 257]


def test_a_changed_file_is_read_anew(tmp_path):
    path = write_tiny_vocabulary(tmp_path)
    assert len(load_tokenizer(tmp_path)) == 473
    path.write_text(path.read_text() + "YmM= 256\n")
    assert len(load_tokenizer(tmp_path)) == 474


def test_a_saved_vocabulary_is_the_one_read(vocabulary, tokenizer, tmp_path):
    saved = save_vocabulary(tokenizer, tmp_path / "new")
    assert saved.read_bytes() == (vocabulary / "qwen.tiktoken").read_bytes()


def test_it_survives_pickling(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again("a<img>").input_ids == [97, 470]
    assert again.pad_token_id == 256


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"qwen\.tiktoken"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("line", ["<html>", "YQ== x", "? 256", "YQ==\n"])
def test_a_line_that_is_no_rank_is_named(line, tmp_path):
    path = write_tiny_vocabulary(tmp_path)
    path.write_text(path.read_text() + line)
    with pytest.raises(ModelError, match=r"qwen\.tiktoken:257"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_cut_short_is_refused(tmp_path):
    path = write_tiny_vocabulary(tmp_path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ModelError, match="incomplete: 255 ranks"):
        load_tokenizer(tmp_path)
