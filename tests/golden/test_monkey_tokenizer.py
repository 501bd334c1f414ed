"""The published vocabulary: our tokenizer against tiktoken, and upstream's special ids."""

from __future__ import annotations

import filecmp
import hashlib
import json
import unicodedata
from pathlib import Path

import pytest
import tiktoken
from vocabularies import qwen_folder

from vlm_lora_monkey.names import SPECIAL_TOKENS
from vlm_lora_monkey.tokenization import SPLIT_PATTERN, load_tokenizer, save_vocabulary

VOCABULARY = qwen_folder()
IDS = Path(__file__).parent / "monkey" / "tokenizer_ids.json"
SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"

TEXTS = [
    "",
    " ",
    "What is written on the sign? Answer: ",
    "I'm sure they'll say it's WE'VE 'D don't",
    "1 12 123 1234567890 3.14159 1,000,000 ½ Ⅷ ٣",
    "a  b   c    d\t\te\n\nf\r\n\r\ng \n h   ",
    "   leading and trailing   ",
    "图中有一只黑色的猫，坐在窗台上。这张图片里有什么？",
    "日本語のテキスト、한국어 텍스트, ไทย, العربية, हिन्दी, ქართული",
    "😀👩‍👩‍👧‍👦🇩🇪🏳️‍🌈 mixed 中文 and emoji 🎉🎉🎉",
    "Cafe\u0301 naı\u0308ve A\u030a \u1100\u1161\u11a8 ﬁ",
    "def f(x: int) -> str:\n    return f'{x!r}'  # comment\n\n\nif __name__ == \"__main__\":\n\tf(1)",
    "<div class='a'><b>x</b></div> && || != === /* */ // https://example.org/a?b=c&d=%20",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaa ================ -------- ........ _____",
    "\x00\x01\x7f\u200b\u200d\u00a0\u3000\ufeff\ufffd",
    "<|endoftext|><|im_start|>user\n<|im_end|><|extra_0|><|extra_204|>x<|extra_205|>",
    "<ref>the dog</ref><box>(12,34),(560,780)</box> <quad>x</quad><img></img><imgpad><im_start>",
    "$E = mc^2$ \\frac{a}{b} ∑∫≤ → µm ℃ £ € ¥",
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(VOCABULARY)


@pytest.fixture(scope="module")
def reference():
    from base64 import b64decode

    lines = (VOCABULARY / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    specials = {token: len(ranks) + index for index, token in enumerate(SPECIAL_TOKENS)}
    return tiktoken.Encoding("qwen", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=specials)


def test_the_vocabulary_is_the_one_that_the_references_were_made_with():
    assert hashlib.sha256((VOCABULARY / "qwen.tiktoken").read_bytes()).hexdigest() == SHA256


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_tiktokens(text, tokenizer, reference):
    expected = reference.encode(unicodedata.normalize("NFC", text), allowed_special="all")
    assert tokenizer(text).input_ids == expected


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_normalised_text_back(text, tokenizer):
    assert tokenizer.decode(tokenizer(text).input_ids) == unicodedata.normalize("NFC", text)


def test_special_ids_equal_upstreams(tokenizer):
    ids = json.loads(IDS.read_text("utf-8"))
    names = {
        "img_start_id": "<img>",
        "img_end_id": "</img>",
        "img_pad_id": "<imgpad>",
        "ref_start_id": "<ref>",
        "ref_end_id": "</ref>",
        "box_start_id": "<box>",
        "box_end_id": "</box>",
        "quad_start_id": "<quad>",
        "quad_end_id": "</quad>",
        "eod_id": "<|endoftext|>",
        "im_start_id": "<|im_start|>",
        "im_end_id": "<|im_end|>",
    }
    assert {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()} == {
        key: ids[key] for key in names
    }
    assert len(tokenizer) == ids["vocab_size"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == ids["eod_id"]


def test_the_vocabulary_is_written_back_byte_for_byte(tokenizer, tmp_path):
    assert filecmp.cmp(save_vocabulary(tokenizer, tmp_path), VOCABULARY / "qwen.tiktoken", shallow=False)
