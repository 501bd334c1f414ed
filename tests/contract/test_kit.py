"""The kit itself: it finds what is broken, says so by name, and asks for a model where there is none."""

from importlib import import_module

import pytest
import torch
from toy_family import toy_model

from vlm_lora_plugin import get_manager
from vlm_lora_plugin.contract import Patch
from vlm_lora_plugin.errors import AdapterError
from vlm_lora_plugin.testing import ContractError, assert_adapter_contract
from vlm_lora_plugin.testing.contract import PROMISES


def test_every_promise_has_its_check_and_says_what_it_means():
    for promise in PROMISES:
        module, _, function = promise.reference.partition(":")
        assert getattr(import_module(module), function).__doc__
    assert len({promise.name for promise in PROMISES}) == len(PROMISES)


def test_all_broken_promises_are_named_at_once(toy, tmp_path):
    toy_model().save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    wanted = ("its-folder-is-recognised-and-others-are-not", "the-architecture-describes-the-model")
    with pytest.raises(ContractError) as raised:
        assert_adapter_contract("toy", model=tmp_path, promises=wanted)
    assert "breaks 2 promises" in str(raised.value)
    assert all(f"{name}: " in str(raised.value) for name in wanted)


def test_a_family_without_a_tiny_model_is_told_how_to_give_one(toy):
    with pytest.raises(ContractError, match="no model to try the family toy on"):
        assert_adapter_contract("toy", promises=["the-config-alone-gives-the-model-without-weights"])


def test_an_unknown_promise_is_an_error_with_the_nearest():
    with pytest.raises(AdapterError, match="every-rule-matches"):
        assert_adapter_contract("monkey", promises=["every-rule-match"])


def leaving_a_hook(model):
    model.transformer.register_forward_pre_hook(lambda *_: None)
    return lambda: None


def changing_the_result(model):
    handle = model.lm_head.register_forward_hook(lambda module, args, output: output * 1.01)
    return handle.remove


def computing_with_the_first_model(model):
    """What no copy can make its own: a patch that remembers the model outside of what it puts into it."""
    FIRST[:] = [model]
    handle = model.lm_head.register_forward_hook(
        lambda module, args, output: torch.nn.functional.linear(args[0], FIRST[0].lm_head.weight)
    )
    return handle.remove


FIRST = []


@pytest.mark.parametrize(
    ("apply", "promise", "words"),
    [
        (computing_with_the_first_model, "a-deep-copy-computes-with-its-own-weights", "the original"),
        (leaving_a_hook, "undoing-leaves-the-model-bitwise-as-it-was", "transformer._forward_pre_hooks"),
        (changing_the_result, "patches-keep-loss-and-gradients", "the loss is"),
    ],
)
def test_a_patch_that_does_not_keep_its_word_is_found(monkeypatch, apply, promise, words):
    manager = get_manager()
    asked = manager.wrap_forward

    def wrap_forward(family, model, recipe):
        return [*asked(family, model, recipe), Patch("broken", "for the test", apply)]

    monkeypatch.setattr(manager, "wrap_forward", wrap_forward)
    with pytest.raises(ContractError, match=words):
        assert_adapter_contract("monkey", promises=[promise])
