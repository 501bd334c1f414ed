"""Autocast is a patch like the others: one stack, whichever way a model was prepared."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import TrainingArguments

from vlm_lora_monkey.tiny import tiny_model
from vlm_lora_plugin import prepare
from vlm_lora_plugin.frameworks.trainer.in_place import prepare_in_place
from vlm_lora_plugin.prepared.model import VlmLoraPeftModel

RECIPE = {"preset": "lora", "answer_only_loss": True, "gradient_checkpointing": {"language": True}}
LEVERS = ("text-only batches", "checkpoint vision", "checkpoint language", "answer-only logits")


def base(dtype=torch.bfloat16):
    return tiny_model().to(dtype)


def in_place(model, folder):
    return prepare_in_place(model, RECIPE, TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True))


@pytest.fixture(params=["prepare", "in place"])
def prepared(request, tmp_path):
    return prepare(base(), RECIPE) if request.param == "prepare" else in_place(base(), tmp_path)


def autocast_inside(model, call=lambda model, ids: model(input_ids=ids)):
    """Whether autocast is on where the head computes."""
    seen = []
    inner = model.get_base_model() if isinstance(model, VlmLoraPeftModel) else model
    hook = inner.lm_head.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.no_grad():
        call(model, torch.tensor([[3, 4, 5]]))
    hook.remove()
    return set(seen) == {True}


def test_it_is_the_last_patch_and_so_the_outermost(prepared):
    assert prepared.vlm_lora.patches == (*LEVERS, "autocast bfloat16")
    assert autocast_inside(prepared)
    assert autocast_inside(prepared.get_base_model())


def test_generation_computes_under_it(prepared):
    def generate(model, ids):
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)

    assert autocast_inside(prepared, generate)
    assert autocast_inside(prepared.get_base_model(), generate)


def test_undoing_the_patches_keeps_what_fp32_lora_in_a_16_bit_base_needs(prepared):
    prepared.vlm_lora.undo_patches()

    assert prepared.vlm_lora.patches == ("autocast bfloat16",)
    assert autocast_inside(prepared)
    assert autocast_inside(prepared.get_base_model())


def test_undoing_everything_leaves_the_forward_pass_as_it_was(prepared):
    prepared.vlm_lora.undo_patches(autocast=True)

    model = prepared.get_base_model()
    assert prepared.vlm_lora.patches == ()
    assert not {"forward", "generate"} & vars(model).keys()
    assert not autocast_inside(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(vars(module).get("gradient_checkpointing") for module in model.modules())


def test_an_fp32_base_has_none():
    assert prepare(base(torch.float32), RECIPE).vlm_lora.patches == LEVERS


def test_a_deep_copy_computes_with_its_own_weights(prepared):
    twin = copy.deepcopy(prepared)
    with torch.no_grad():
        twin.get_base_model().lm_head.weight.zero_()
        ids = torch.tensor([[3, 4, 5]])
        assert not twin(input_ids=ids).logits.any()
        assert prepared(input_ids=ids).logits.any()
    twin.vlm_lora.undo_patches(autocast=True)
    assert autocast_inside(prepared)
