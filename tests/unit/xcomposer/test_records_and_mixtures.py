"""Upstream's own data: rows, and ``data.txt``."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import pytest

from vlm_lora_plugin.contract.example import Message
from vlm_lora_plugin.data.mixture import ExampleMixture, open_examples
from vlm_lora_plugin.errors import DataError
from vlm_lora_xcomposer.adapter import describe_family
from vlm_lora_xcomposer.mixtures import read_mixture
from vlm_lora_xcomposer.prompt import upstream_text
from vlm_lora_xcomposer.records import parse_record

FAMILY = describe_family()


def record(*values, **keys):
    turns = [{"from": ("user", "assistant")[i % 2], "value": value} for i, value in enumerate(values)]
    return {"id": "0", "conversations": turns, **keys}


def test_a_row_with_images():
    example = parse_record(record("<ImageHere>a<ImageHere>", "b", image=["x.png", "y/z.png"]), Path("d"), "f:1")
    assert example.messages == (Message("user", "<image>a<image>"), Message("assistant", "b"))
    assert example.images == (Path("d/x.png"), Path("d/y/z.png"))
    assert example.verbatim
    assert example.origin == "f:1"


def test_one_path_need_not_be_in_a_list():
    assert parse_record(record("a", "b", image="x.png"), Path("d"), "f:1").images == (Path("d/x.png"),)


def test_speakers_have_roles_and_upstream_takes_all_but_the_user_for_the_assistant():
    names = ("Human", "gpt", "USER", "bot", "system")
    row = {"conversations": [{"from": name, "value": "t"} for name in names]}
    messages = parse_record(row, Path(), "f:1").messages
    assert [message.role for message in messages] == ["user", "assistant", "user", "assistant", "system"]
    assert upstream_text(messages).count("assistant\nt") == 3


def test_a_row_in_another_form_is_left_alone():
    assert parse_record({"question": "a"}, Path(), "f:1") is None


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"conversations": []}, "must be a list of turns"),
        ({"conversations": [{"from": "user"}]}, "turn 1 needs `from` and `value`"),
        (record("a", 3), "turn 2 needs `from` and `value`"),
        ({"conversations": [{"from": "tool", "value": "t"}]}, "turn 1 is from 'tool'"),
        (record("a", "b", image="x.png", images=["y.png"]), "`image` and `images`"),
        (record("<image>a", "b"), "turn 1 holds <image>"),
        (record("a", "b", image=[3]), "`image` must be a list of paths"),
        (record("a", "b", image=None), "`image` must be a list of paths"),
        (record("a", "b", image=["https://example.org/x.png"]), "is a URL"),
    ],
)
def test_a_wrong_row_is_named(row, problem):
    with pytest.raises(DataError, match=rf"f\.json item 3.*{problem}"):
        parse_record(row, Path(), "f.json item 3")


@pytest.fixture
def write(tmp_path):
    """Write a JSON list of ``count`` rows, or text."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            content = json.dumps([record(f"{path.stem} {i}", "b", image="cat.png") for i in range(content)])
        path.write_text(content, "utf-8")
        return path

    return write


def first_texts(examples):
    return [example.messages[0].content for example in examples]


def test_a_mixture_says_thousands_of_samples(write):
    write("a.json", 2)
    write("sub dir/b.json", 2)
    path = write("data.txt", "a.json 0.02\n\n  sub dir/b.json   1.5\n")
    parts = read_mixture(path)
    assert [(part.file, part.rows) for part in parts] == [
        (path.parent / "a.json", 20),
        (path.parent / "sub dir/b.json", 1500),
    ]
    assert parts[1].origin == f"{path}:3"


def test_other_files_are_no_mixtures(write):
    path = write("data.json", 3)
    assert read_mixture(path) is None
    assert len(open_examples(path, FAMILY)) == 3


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a.json", "is not a path and number"),
        ("a.json many", "is not a path and number"),
        ("a.json 0", "0 thousand samples are none at all"),
        ("a.json -1", "are none at all"),
        ("a.json nan", "are none at all"),
        ("missing.json 1", "there is no data file"),
    ],
)
def test_a_wrong_line_of_a_mixture_is_named(write, line, problem):
    write("a.json", 1)
    path = write("data.txt", f"a.json 1\n{line}\n")
    with pytest.raises(DataError, match=rf"data\.txt:2: .*{problem}"):
        read_mixture(path)


def test_an_empty_mixture_is_an_error(write):
    with pytest.raises(DataError, match="names no file"):
        read_mixture(write("data.txt", "\n"))


def test_files_are_sampled_down_and_up(write):
    write("many.json", 40)
    write("few.json", 4)
    mixture = open_examples(write("data.txt", "many.json 0.01\nfew.json 0.01\n"), FAMILY)
    assert isinstance(mixture, ExampleMixture)
    texts = first_texts(mixture)
    many, few = texts[:10], Counter(texts[10:])
    assert len(texts) == 20
    assert len(set(many)) == 10
    assert all(text.startswith("many") for text in many)
    assert set(few) == {f"few {i}" for i in range(4)}
    assert sum(few.values()) == 10


def test_the_draw_depends_on_the_seed_alone(write):
    write("many.json", 60)
    path = write("data.txt", "many.json 0.02\n")
    one, again, other = (first_texts(open_examples(path, FAMILY, seed=seed)) for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_paths_of_images_start_at_the_mixture(write):
    write("sets/a.json", 1)
    path = write("data.txt", "sets/a.json 0.001\n")
    assert open_examples(path, FAMILY)[0].images == (path.parent / "cat.png",)


def test_rows_keep_their_names_when_some_are_left_out(write):
    write("a.json", 5)
    mixture = open_examples(write("data.txt", "a.json 0.005\n"), FAMILY)
    names = [mixture.origin(index) for index in range(5)]
    mixture.keep([4, 1])
    assert [mixture.origin(0), mixture.origin(1)] == [names[4], names[1]]
    assert mixture[0].origin == names[4]
    assert mixture[0:2] == [mixture[0], mixture[1]]
    assert pickle.loads(pickle.dumps(mixture))[1] == mixture[1]


def test_the_files_behind_the_rows_are_known(write):
    path = write("data.txt", "a.json 0.001\n")
    data = write("a.json", 5)
    assert open_examples(path, FAMILY).files == (path, data)
    assert open_examples(data, FAMILY).files == (data,)


def test_a_broken_file_is_named_with_the_mixtures_line(write):
    write("a.json", "[")
    with pytest.raises(DataError, match=r"data\.txt:1: .*a\.json: not valid JSON"):
        open_examples(write("data.txt", "a.json 1\n"), FAMILY)
