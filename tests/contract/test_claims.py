"""Whose a folder or a model is: one specific family, else one fallback; two claims are an error."""

from dataclasses import replace

import pytest
from toy_family import ToyAdapter, toy_config, toy_model

from vlm_lora_plugin import hookimpl
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.plugins.manager import AdapterManager


def toy(name, **changes):
    """An adapter of the toy family under another name."""

    class Adapter(ToyAdapter):
        @hookimpl
        def describe_family(self):
            return replace(super().describe_family(), name=name, **changes)

    return Adapter()


@pytest.fixture
def owner(tmp_path):
    """Ask managers of some adapters whose a toy's folder and a toy are."""
    toy_config().save_pretrained(tmp_path)

    def ask(question, *adapters):
        manager = AdapterManager(discover=False)
        for number, adapter in enumerate(adapters):
            manager.register(adapter, name=f"adapter of {number}")
        if question == "folder":
            return manager.family_of_folder(tmp_path).name
        return manager.family_of_model(toy_model()).name

    return ask


QUESTIONS = pytest.mark.parametrize("question", ["folder", "model"])


@QUESTIONS
def test_a_fallback_is_asked_where_no_specific_family_claims_it(owner, question):
    others = {"model_types": ("other",), "recognises": lambda folder: False}
    assert owner(question, toy("a"), toy("b", fallback=True)) == "a"
    assert owner(question, toy("b", fallback=True), toy("z")) == "z"
    assert owner(question, toy("a", **others), toy("b", fallback=True)) == "b"


def test_a_fallback_does_not_look_at_a_folder_that_a_specific_family_recognises(owner):
    def fail(folder):
        raise AssertionError("asked")

    assert owner("folder", toy("a", fallback=True, recognises=fail), toy("b")) == "b"


@QUESTIONS
@pytest.mark.parametrize("fallback", [False, True])
def test_two_claims_of_the_same_rank_are_an_error_naming_both(owner, question, fallback):
    with pytest.raises(ModelError, match=r"the adapter of 0, the adapter of 1 \(2 in all\); it must be one"):
        owner(question, toy("a", fallback=fallback), toy("b", fallback=fallback))
