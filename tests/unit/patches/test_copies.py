"""A deep copy of a prepared model computes with its own weights, whatever a patch closes over."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from toy_family import toy_model
from transformers import Trainer, TrainingArguments

import vlm_lora_xcomposer.forward
from vlm_lora_monkey.tiny import tiny_model
from vlm_lora_plugin import prepare
from vlm_lora_plugin.contract import Patch
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.frameworks.trainer.in_place import prepare_in_place
from vlm_lora_plugin.patches import text_only
from vlm_lora_plugin.patches.stack import PatchStack
from vlm_lora_plugin.patches.wrapping import wrap_method
from vlm_lora_plugin.prepared.model import find_prepared
from vlm_lora_plugin.testing.promises.copying import check_copy, held_from
from vlm_lora_plugin.testing.promises.patching import all_on
from vlm_lora_plugin.testing.subject import Subject, with_image
from vlm_lora_plugin.testing.subject import text_only as text_row


@pytest.mark.parametrize("family", ["monkey", "omnilmm", "xcomposer"])
def test_what_several_ranks_need_is_the_copys_own_too(family, tmp_path, monkeypatch):
    for module in (text_only, vlm_lora_xcomposer.forward):
        monkeypatch.setattr(module, "several_ranks", lambda: True)
    subject = Subject(family, tmp_path)
    model = all_on(subject)
    check_copy(model, [subject.batch(with_image()), subject.batch(text_row())])
    assert model.vlm_lora.patches == ()  # what it ends with, so that it went all the way


class Net(nn.Module):
    """Two layers that patches of every style are put into."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.first(x))


def a_closure_in_place_of_forward(model):
    layer, plain = model.first, model.first.forward

    def forward(x):
        return plain(x) + layer.weight.sum()

    layer.forward = forward

    def undo():
        del layer.forward

    return undo


def a_hook_with_a_default(model):
    handle = model.last.register_forward_hook(lambda *args, layer=model.first: args[-1] + layer.weight.sum())
    return lambda: handle.remove()


def a_hook_in_a_partial(model):
    def add(layers, module, args, output):
        return output + sum(layer().weight.sum() for layer in layers)

    def first():
        return model.first

    return model.last.register_forward_hook(partial(add, [first])).remove


def a_method_over_a_closure(model):
    weight = model.first.weight
    return wrap_method(model, "forward", lambda module, call, x: call(x) + weight.sum())


def a_function_that_counts_and_calls_itself(model):
    calls = 0

    def again(x, depth=0):
        nonlocal calls
        calls += 1
        return again(x, depth + 1) if depth < 2 else nn.functional.linear(x, model.first.weight)

    def reset():
        nonlocal calls
        calls = 0
        vars(model.first).pop("forward")

    model.first.forward = again
    return reset


def a_builtin_that_undoes(model):
    vars(model.first)["forward"] = lambda x: nn.functional.linear(x, model.last.weight)
    return partial(vars(model.first).pop, "forward")


STYLES = [
    a_closure_in_place_of_forward,
    a_hook_with_a_default,
    a_hook_in_a_partial,
    a_method_over_a_closure,
    a_function_that_counts_and_calls_itself,
    a_builtin_that_undoes,
]


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
@pytest.mark.parametrize("first", ["model", "stack"])
def test_a_patch_of_any_style_is_rebound(style, first):
    torch.manual_seed(0)
    model, stack, x = Net(), PatchStack(), torch.ones(1, 3)
    plain = model(x)
    stack.apply(model, [Patch("any", "for the test", style)])
    patched = model(x)
    # A deep copy of a prepared model meets its base first; in what another holder makes, the stack may come first.
    twin, other = copy.deepcopy((model, stack) if first == "model" else (stack, model))[
        :: 1 if first == "model" else -1
    ]

    assert not torch.equal(patched, plain)
    assert torch.equal(twin(x), patched)
    assert not held_from(twin, model)
    assert not held_from(copy.deepcopy(model), model)
    with torch.no_grad():
        for tensor in twin.parameters():
            tensor.zero_()
    assert not twin(x).any()
    assert torch.equal(model(x), patched)
    other.undo()
    assert torch.equal(model(x), patched)
    assert vars(twin).keys() == vars(Net()).keys()
    assert "forward" not in vars(twin.first)
    assert not twin.last._forward_hooks
    stack.undo()
    assert torch.equal(model(x), plain)


def test_hooks_of_the_users_own_stay_as_they_are():
    model, seen = toy_model(), []
    hook = lambda *_: seen.append(model)  # noqa: E731
    model.lm_head.register_forward_hook(hook)
    PatchStack().apply(model, [Patch("any", "for the test", lambda model: lambda: None)])

    assert list(model.lm_head._forward_hooks.values()) == [hook]


@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_that_its_trainer_prepared_in_place_is_copied_whole(tmp_path, bf16):
    """As an average of weights or a reference model does with ``trainer.model``."""
    recipe = {"preset": "lora", "answer_only_loss": True, "gradient_checkpointing": {"vision": True}}
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=bf16)
    trainer = Trainer(tiny_model(), arguments)
    prepare_in_place(trainer.model, recipe, arguments)
    model = trainer.accelerator.prepare_model(trainer.model)
    twin = copy.deepcopy(model)
    ids = torch.tensor([[3, 4, 5]])
    before = model(input_ids=ids).logits
    with torch.no_grad():
        for tensor in twin.parameters():
            tensor.zero_()

    assert find_prepared(twin).get_base_model() is twin
    assert not held_from(twin, model)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert not twin(input_ids=ids).logits.any()
    find_prepared(twin).vlm_lora.undo_patches()
    assert find_prepared(model).vlm_lora.patches


def test_pickling_says_what_to_do_instead():
    with pytest.raises(ModelError, match="cannot be pickled"):
        pickle.dumps(prepare(tiny_model(), "lora"))
