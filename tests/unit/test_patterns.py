"""Patterns from recipes, manifests and family plugins end in time, and match what ``re`` matches."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy_family import ARCHITECTURE, toy_model

from vlm_lora_plugin import load_adapter, patterns, prepare
from vlm_lora_plugin.errors import RecipeError
from vlm_lora_plugin.patches.checkpointing import blocks_of
from vlm_lora_plugin.patches.image_text import image_only_names
from vlm_lora_plugin.patterns import Matcher
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.selection.layout import Layout
from vlm_lora_plugin.selection.resolve import resolve_selection

NAMES = [f"model.layers.{n}.self_attn.{part}_proj.weight" for n in range(10) for part in "qkv"]
SLOW = r"((a|\w|.)*)*[A-Z]"
"""A year's work for any engine that backtracks: no name has a capital."""

PIECES = st.sampled_from(
    ["model", r"\.", ".", r"\d", r"\w", "[a-z_]", "[^.]", "q", "weight", "(?=m)", "(?!q)", r"\b", "[A-Z]", "!", "_proj"]
)
REPEATS = st.sampled_from(["", "", "", "*", "+", "?", "*?", "+?", "{2}", "{0,3}", "{1,9}"])


def grown(inner):
    one = st.tuples(inner, REPEATS).map(lambda pair: f"(?:{pair[0]}){pair[1]}")
    group = st.tuples(inner, REPEATS).map(lambda pair: f"({pair[0]}){pair[1]}")
    several = st.lists(inner, min_size=2, max_size=4)
    return one | group | several.map("".join) | several.map("|".join)


PATTERNS = st.recursive(PIECES, grown, max_leaves=12)


@settings(max_examples=100)
@given(PATTERNS)
@example(r"([a-z_.0-9]+)+!")
@example(SLOW)
def test_any_pattern_ends_within_its_time_and_the_error_names_it(pattern):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patterns, "SECONDS", 0.01)
        start = time.process_time()
        try:
            Matcher(pattern).among(NAMES)
        except RecipeError as error:
            assert pattern[:50] in error.what  # noqa: PT017  most patterns raise nothing
        assert time.process_time() - start < 1


@settings(max_examples=150)
@given(st.lists(PIECES | st.sampled_from([".*", r"\d+", "(?:q|k)", "(q|v)", "[^.]+"]), min_size=1, max_size=8))
@example(["model", r"\.", ".*", "(?:q|k)", "_proj", r"\.", "weight"])
def test_a_pattern_matches_what_re_matches(pieces):
    pattern = "".join(pieces)
    assert Matcher(pattern).among(NAMES) == [name for name in NAMES if re.fullmatch(pattern, name)]


@settings(max_examples=200)
@given(st.text(alphabet="ab.\\(){}[]|*+?^$0123456789,<>=!:PRi-&#", max_size=30))
@example("(?R)")
@example("(" * 5000)
@example("a{99999999999999999999}")
@example("(?:name){e}")
@example(r"\p{Lu}")
def test_what_re_does_not_read_is_an_error_and_all_else_reads_alike(text):
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(patterns, "SECONDS", 0.05)
            ours = Matcher(text).among(["a", "ab", "a.b", "aab.1"])
    except RecipeError as error:
        assert text[:50] in error.what  # noqa: PT017
        return
    assert ours == [name for name in ["a", "ab", "a.b", "aab.1"] if re.fullmatch(text, name)]


def test_the_time_is_for_all_names_together(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.05)
    with pytest.raises(RecipeError, match=r"takes longer than 0\.05 s"):
        Matcher(r"(\w|\w\.|[a-z.]+)+[!?]").among(NAMES * 100)


@pytest.mark.parametrize(
    "document",
    [
        {"rules": [{"pattern": SLOW, "means": "full"}]},
        {"rules": [{"component": "vision", "pattern": [r"tower\..*", SLOW], "means": "full"}]},
        {"rules": [{"component": "vision", "exclude": SLOW, "means": "full"}]},
    ],
)
def test_a_slow_pattern_of_a_recipe_is_named(toy, monkeypatch, document):
    monkeypatch.setattr(patterns, "SECONDS", 0.1)
    with pytest.raises(RecipeError, match=re.escape(f"The pattern '{SLOW}' takes longer than 0.1 s")):
        resolve_selection(toy_model(), toy, resolve_recipe(document, toy))


def test_what_is_not_a_regular_expression_is_said(toy):
    document = {"rules": [{"pattern": "tower(", "means": "full"}]}
    with pytest.raises(RecipeError, match="'tower\\(' is not a regular expression: missing \\)"):
        resolve_selection(toy_model(), toy, resolve_recipe(document, toy))


def test_a_slow_pattern_of_a_downloaded_manifest_is_named(toy, tmp_path, monkeypatch):
    prepare(toy_model(), {"rules": [{"pattern": r"tower\.(stem)\..*", "means": "full"}]}).save_pretrained(tmp_path)
    monkeypatch.setattr(patterns, "SECONDS", 1e-9)
    with pytest.raises(RecipeError, match="takes longer"):
        load_adapter(toy_model(), tmp_path)


@pytest.mark.parametrize("place", ["blocks", "builtin_lora"])
def test_a_slow_pattern_of_a_family_plugin_is_named(monkeypatch, place):
    monkeypatch.setattr(patterns, "SECONDS", 0.1)
    vision, *others = ARCHITECTURE.components
    slow = replace(ARCHITECTURE, components=(replace(vision, **{place: SLOW}), *others))
    with pytest.raises(RecipeError, match=r"takes longer than 0\.1 s"):
        Layout(toy_model(), slow).blocks_in("0", "vision")


def test_a_slow_pattern_of_checkpointed_blocks_or_text_only_batches_is_named(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.1)
    vision = replace(ARCHITECTURE.components[0], blocks=SLOW)
    with pytest.raises(RecipeError, match="The pattern of blocks of vision"):
        blocks_of(vision, toy_model())
    with pytest.raises(RecipeError, match="takes longer"):
        image_only_names(toy_model(), replace(ARCHITECTURE, image_only=(SLOW,)))


def test_a_slow_pattern_of_computed_tables_is_named(toy, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.1)
    slow = replace(ARCHITECTURE, fixed_tables=(SLOW,))
    monkeypatch.setattr(get_manager(), "architecture", lambda family, model: slow)
    with pytest.raises(RecipeError, match="The pattern of computed tables"):
        resolve_selection(toy_model(), toy, resolve_recipe("lora", toy))
