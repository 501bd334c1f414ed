"""JSON from outside: twice is an error, and depth and encoding are bounded."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_lora_plugin.errors import CheckpointError, DocumentError, DuplicateKeyError, ModelError, RecipeError
from vlm_lora_plugin.frameworks.swift.launch import with_plugin
from vlm_lora_plugin.frameworks.swift.names import RECIPE_VARIABLE
from vlm_lora_plugin.frameworks.swift.recipe import given_recipe
from vlm_lora_plugin.models import read_config
from vlm_lora_plugin.outside.json_text import parse_json
from vlm_lora_plugin.selection.manifest import Manifest


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1, "b": {"a": 1}, "a": 2}', "the key `a` stands twice in one object"),
        ('{"a": "{\\"c\\",",\n"b": {"c": 1,\n"c": ["c", "c"]}}', "`c` stands twice, in lines 2 and 3"),
        ('{"a":\n1, "b": [{"a": 1}, {"a": 1}],\n"\\u0061": 2}', "`a` stands twice, in lines 1 and 3"),
        ('{"x\\n\\u001b[31m": 1, "x\\n\\u001b[31m": 2}', r"`x\\n\\x1b\[31m` stands twice"),
    ],
)
def test_a_key_that_stands_twice_is_an_error(text, problem):
    with pytest.raises(DuplicateKeyError, match=problem):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "nested more than"),
        ("[" * 100 + "]" * 100, "nested more than"),
        ('{"a": ' * 100 + "1" + "}" * 100, "nested more than"),
        ("1" * 5000, "a number of 5,000 digits"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        ('{\n"a" 1}', "line 2, column 5"),
        ("", "not valid JSON"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(text, problem):
    with pytest.raises(DocumentError, match=problem):
        parse_json(text)


def test_a_mark_of_byte_order_in_front_is_left_out():
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_a_config_with_a_key_twice_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{\n"model_type": "a",\n"model_type": "b"}')
    with pytest.raises(ModelError, match="`model_type` stands twice, in lines 2 and 3"):
        read_config(tmp_path)


def test_a_manifest_with_a_key_twice_is_refused():
    with pytest.raises(CheckpointError, match="`seed` stands twice"):
        Manifest.from_json('{"seed": 1, "seed": 2}', source="the manifest")


@pytest.mark.parametrize("arguments", [["--model_kwargs", '{"a": 1, "a": 2}'], ['--model_kwargs={"a": 1, "a": 2}']])
def test_an_object_on_swifts_command_line_with_a_key_twice_is_refused(arguments):
    with pytest.raises(RecipeError, match="`a` stands twice"):
        with_plugin(arguments)


def test_a_config_file_of_swifts_with_a_key_twice_is_refused(tmp_path):
    for name, text in (("a.json", '{"lr": 1,\n"lr": 2}'), ("a.yaml", "lr: 1\nlr: 2")):
        (tmp_path / name).write_text(text)
        with pytest.raises(RecipeError, match="`lr` stands twice, in lines 1 and 2"):
            with_plugin([str(tmp_path / name)])


@pytest.mark.parametrize("text", ['{"seed": 1, "seed": 2}', "{seed: 1, seed: 2}"])
def test_a_recipe_in_the_variable_with_a_key_twice_is_refused(text, monkeypatch):
    monkeypatch.setenv(RECIPE_VARIABLE, text)
    with pytest.raises(RecipeError, match="`seed` stands twice"):
        given_recipe()


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(values, st.sampled_from([None, 1]))
def test_what_json_writes_is_read_back(value, indent):
    assert parse_json(json.dumps(value, indent=indent)) == value


@given(st.dictionaries(st.text(max_size=3), values, min_size=1, max_size=4), st.data())
def test_a_repeated_key_is_found_wherever_it_stands(document, data):
    items = list(document.items())
    key, value = data.draw(st.sampled_from(items))
    items.insert(data.draw(st.integers(0, len(items))), (key, value))
    text = "{" + ",\n".join(f"{json.dumps(name)}: {json.dumps(inner)}" for name, inner in items) + "}"
    first, second = (at + 1 for at, (name, _) in enumerate(items) if name == key)
    with pytest.raises(DuplicateKeyError, match=f"in lines {first} and {second}"):
        parse_json(f"\n{text}".lstrip() if len(items) > 2 else text + "\n\n")
