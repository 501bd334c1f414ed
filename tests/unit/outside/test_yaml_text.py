"""YAML from outside: twice is an error, and a scalar is what people take it for."""

from __future__ import annotations

import os

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vlm_lora_plugin.errors import DocumentError, DuplicateKeyError, RecipeError
from vlm_lora_plugin.outside.yaml_text import dump_yaml, parse_yaml, read_yaml
from vlm_lora_plugin.recipe import Recipe, parse_assignments, read_recipe


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: 1\nb: 2\na: 3", "lines 1 and 3"),
        ("x: {a: 1,\n  a: 2}", "lines 1 and 2"),
        ("x:\n  - a: 1\n    b: 2\n    a: 3", "lines 2 and 4"),
        ("'a': 1\na: 2", "lines 1 and 2"),
        ("x: &x {a: 1}\ny: {<<: *x, a: 2, a: 3}", "lines 2 and 2"),
        ("<<: {a: 1}\n<<: {a: 2}", "lines 1 and 2"),
    ],
)
def test_a_key_that_stands_twice_is_an_error_with_both_lines(text, lines):
    with pytest.raises(DuplicateKeyError, match=f"stands twice, in {lines}"):
        parse_yaml(text)


def test_the_same_key_in_two_mappings_or_over_a_merged_one_is_fine():
    assert parse_yaml("- a: 1\n- a: 2") == [{"a": 1}, {"a": 2}]
    assert parse_yaml("x: &x {a: 1, b: 1}\ny: {<<: *x, a: 2}")["y"] == {"a": 2, "b": 1}
    assert parse_yaml("x: &x {a: 1}\ny: {<<: *x, a: 2}\nz: {<<: *x}")["z"] == {"a": 1}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("08", 8),
        ("0o10", 8),
        ("0x1F", 31),
        ("-3", -3),
        ("1_000", 1000),
        ("1e-4", 1e-4),
        ("5e3", 5000.0),
        ("1_000.5", 1000.5),
        (".5", 0.5),
        ("1:30", "1:30"),
        ("12:30:45", "12:30:45"),
        ("yes", "yes"),
        ("No", "No"),
        ("off", "off"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2026-13-45", "2026-13-45"),
        ("2026-11-28", "2026-11-28"),
        ("'010'", "010"),
        ("0b11", "0b11"),
        ("0-3", "0-3"),
    ],
)
def test_a_scalar_is_read_as_meant(text, value):
    found = parse_yaml(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("word", ["yes", "on", "true"])
def test_a_switch_in_words_is_still_a_switch(word):
    assert Recipe.parse(parse_assignments([f"lora.use_dora={word}"])).lora.use_dora is True


def test_layers_with_a_leading_zero_are_ten_and_not_eight(tmp_path):
    file = tmp_path / "oct.yaml"
    file.write_text("rules:\n  - {component: language, layers: 010, means: frozen}\n")
    assert Recipe.parse(read_recipe(file)).rules[0].layers == ("10",)


def test_minutes_and_seconds_are_not_a_number():
    with pytest.raises(RecipeError, match=r"training\.save_steps"):
        Recipe.parse(parse_assignments(["training.save_steps=1:30"]))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [" * 2000, "nested more than"),
        ("[" * 100 + "]" * 100, "nested more than"),
        ("&a [*a]", "the anchor holds itself"),
        ("a: " + "1" * 5000, "line 1: a number of 5,000 digits"),
        ("!!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a: !!int x", "invalid literal"),
        ("a: !!bool maybe", "does not fit its tag"),
        ("a: !!timestamp 2026-13-45", "could not determine a constructor"),
        ("? [a]\n: 1", "line 1: a key must be plain text"),
        ('a: "\\ud83d"', "half of a surrogate pair"),
        ("--- a\n--- b", "found another document"),
        ("a: b: c", "line 1, column 5"),
        ("\tb", "cannot start any token"),
        (b"a: \xff", "not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(text, problem):
    with pytest.raises(DocumentError, match=problem):
        parse_yaml(text)


def test_aliases_cannot_spell_out_billions():
    lines = ["a0: &a0 [1, 1]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    with pytest.raises(DocumentError, match="aliases spell out more than"):
        parse_yaml("\n".join(lines))


def test_a_recipe_with_a_key_twice_names_the_file(tmp_path):
    file = tmp_path / "dup.yaml"
    file.write_text("preset: lora\ntraining: {max_steps: 1}\ntraining: {save_steps: 5}\n")
    with pytest.raises(RecipeError, match=r"dup\.yaml .*`training` stands twice, in lines 2 and 3"):
        read_recipe(file)
    with pytest.raises(RecipeError, match=r"`data\.processor`"):
        parse_assignments(["data.processor={hd_num: 9, hd_num: 25}"])


def test_an_assignment_is_not_nested_endlessly():
    with pytest.raises(RecipeError, match="goes too deep: nested more than 64 levels"):
        parse_assignments([".".join(["deepspeed"] + ["a"] * 3000) + "=1"])


def test_a_pipe_in_place_of_a_recipe_is_named(tmp_path):
    os.mkfifo(tmp_path / "63")
    with pytest.raises(RecipeError, match=r"There is no recipe file .*63: it is a pipe"):
        read_recipe(tmp_path / "63")


def test_a_file_without_end_is_no_recipe(tmp_path):
    file = tmp_path / "big.yaml"
    file.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(OSError, match="larger than 1 MiB"):
        read_yaml(file)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
    | st.sampled_from(["1e-4", "010", "08", "yes", "no", "1_000", "1:30", "0o17", "2020-01-01", "~", "<<", "=", ""])
)
keys = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5)
documents = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))


@given(documents)
def test_what_is_written_is_read_back_by_this_reader_and_by_others(document):
    text = dump_yaml(document)
    assert parse_yaml(text) == document
    assert yaml.safe_load(text) == document


SAMPLE = b"preset: lora\nrules:\n  - {pattern: ['a.*'], layers: 0-3, means: &m full}\nseed: 1\nlora: {r: 8}\n"
PIECES = st.sampled_from(
    [b"&a ", b"*a", b"<<: ", b"!!int ", b"? ", b"[", b"{", b"}", b"\t", b"'", b'"\\u', b"%", b"|\n", b"\x00", b"\xff"]
)


@given(data=st.data())
def test_a_damaged_recipe_is_read_or_refused_in_words(data, tmp_path_factory):
    damaged = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        piece = data.draw(PIECES | st.binary(min_size=1, max_size=2))
        damaged[at : at + data.draw(st.integers(0, 3))] = piece
    file = tmp_path_factory.getbasetemp() / "damaged.yaml"
    file.write_bytes(bytes(damaged))
    answer: object = "read"
    try:
        recipe = Recipe.parse(read_recipe(file))
        assert Recipe.parse(parse_yaml(recipe.to_yaml())) == recipe
    except RecipeError as error:  # any other exception is a fault
        answer = error.what
    assert answer
