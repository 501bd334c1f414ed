from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vlm_lora_monkey.records import parse_record
from vlm_lora_plugin.contract.example import Example, Message
from vlm_lora_plugin.errors import DataError


def record(*values, speakers=("user", "assistant")):
    return {"conversations": [{"from": speakers[i % 2], "value": value} for i, value in enumerate(values)]}


def parsed(*values, **options):
    return parse_record(record(*values, **options), Path("/data"), "d.json item 1")


def test_inline_paths_become_images_and_the_text_stays_as_written():
    example = parsed("A <img>a b.png</img>\n<img>/abs/猫.png</img> What? Answer: ", " cat ")
    assert example == Example(
        messages=(Message("user", "A <image>\n<image> What? Answer: "), Message("assistant", " cat ")),
        images=(Path("/data/a b.png"), Path("/abs/猫.png")),
        origin="d.json item 1",
        verbatim=True,
    )


def test_rows_of_another_format_are_left_to_others():
    assert parse_record({"messages": []}, Path(), "row") is None


def test_human_and_gpt_are_user_and_assistant():
    assert parsed("q", "a", speakers=("human", "gpt")) == parsed("q", "a")


@pytest.mark.parametrize(
    "text",
    ["<img>x.png question", "x.png</img> question", "<img>a<img>b.png</img> q", "<img>a</img></img>"],
)
def test_an_unpaired_image_tag_is_an_error(text):
    with pytest.raises(DataError, match="item 1: turn 1 has an <img> without </img>"):
        parsed(text, "a")


def test_a_stray_tag_in_an_answer_names_its_turn():
    with pytest.raises(DataError, match="turn 2 has an <img> without"):
        parsed("q", "use the <img> tag")


def test_a_literal_image_mark_would_be_ambiguous():
    with pytest.raises(DataError, match="turn 1 holds <image>"):
        parsed("<image>What?", "a")


@pytest.mark.parametrize("path", ["http://example.org/a.png", "https://example.org/a.png", "", " "])
def test_an_image_must_be_a_file(path):
    with pytest.raises(DataError, match=r"is a URL|path is empty"):
        parsed(f"<img>{path}</img> q", "a")


@pytest.mark.parametrize(
    ("conversations", "words"),
    [
        ("text", "must be a list of turns"),
        ([], "must be a list of turns"),
        (["text"], "turn 1 needs `from` and `value`"),
        ([{"from": "user"}], "turn 1 needs `from` and `value`"),
        ([{"from": "user", "value": 3}], "turn 1 needs `from` and `value`"),
        ([{"from": "system", "value": "x"}], "turn 1 is from 'system'"),
        ([{"from": ["user"], "value": "x"}], r"turn 1 is from \['user'\]"),
    ],
)
def test_a_broken_row_is_named_with_what_to_write(conversations, words):
    with pytest.raises(DataError, match=words) as caught:
        parse_record({"conversations": conversations}, Path(), "row 7")
    assert str(caught.value).startswith("row 7: ")
    assert "conversations" in caught.value.fix or "user or assistant" in caught.value.fix


def test_reading_rows_needs_neither_torch_nor_transformers():
    code = "import sys, vlm_lora_monkey.records; print({'torch', 'transformers'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"
