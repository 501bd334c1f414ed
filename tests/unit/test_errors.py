"""Errors say what failed, why it matters and what to do."""

import ast
from pathlib import Path

import pytest

import vlm_lora_plugin
from vlm_lora_plugin import errors
from vlm_lora_plugin.errors import VlmLoraError, listed, nearest


def test_the_text_of_an_error_is_its_three_parts_on_lines_of_their_own():
    error = VlmLoraError("It broke", why="You need it.", fix="Repair it.")
    assert str(error) == "It broke\nYou need it.\nRepair it."


def test_parts_that_are_missing_leave_no_empty_line():
    assert str(VlmLoraError("It broke", fix="Repair it.")) == "It broke\nRepair it."


@pytest.mark.parametrize("name", [name for name in vars(errors) if name.endswith("Error")])
def test_every_error_can_be_caught_as_the_root(name):
    assert issubclass(getattr(errors, name), VlmLoraError)


CAUGHT = {"isolation.py: PluginExit", "isolation.py: _NoEnd"}
"""What never leaves the isolation of plugins, which turns it into an AdapterError."""


def test_every_error_of_the_package_stands_in_one_module():
    """What ``testing`` raises are failed assertions of a test, which no user of the package meets."""
    package = Path(vlm_lora_plugin.__file__).parent
    elsewhere = [
        f"{path.name}: {node.name}"
        for path in package.rglob("*.py")
        if path.name != "errors.py" and not path.is_relative_to(package / "testing")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith(("Error", "Exception")) for base in node.bases)
    ]
    assert set(elsewhere) == CAUGHT


def test_a_long_list_is_cut_and_counted():
    assert listed([f"n{i}" for i in range(7)]) == "n0, n1, n2, n3, n4, ... (7 in all)"


def test_a_single_name_stands_alone():
    assert listed(["only"]) == "only"


def test_a_typing_error_is_answered_with_the_close_names():
    assert nearest("lora+lm", ["lora", "lora+llm", "full"]) == "Did you mean lora+llm or lora?"


def test_a_name_close_to_none_is_answered_with_all_names():
    assert nearest("zzz", ["b", "a"]) == "Known: a, b."


def test_no_known_names_is_said_so():
    assert nearest("x", []) == "Known: none."
