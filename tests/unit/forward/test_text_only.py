from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from vlm_lora_monkey.tiny import tiny_model
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.forward.text_only import keep_text_only_trainable

PATCH = keep_text_only_trainable("transformer", ["transformer.visual"])


@pytest.fixture
def model():
    """Only the vision tower's LoRA and the pool learn, as in the preset ``lora``."""
    model = tiny_model().train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name or "attn_pool" in name)
    return model


@pytest.fixture
def text():
    ids = torch.tensor([[5, 6, 7, 8]])
    return {"input_ids": ids, "labels": ids}


def test_without_the_patch_a_text_only_batch_cannot_train(model, text):
    assert not model(**text).loss.requires_grad


def test_text_only_batch_gives_every_parameter_a_gradient_of_zero(model, text):
    PATCH.apply(model)
    plain = tiny_model().train()(**text).loss

    loss = model(**text).loss
    loss.backward()

    assert torch.equal(loss, plain)
    learning = [p for p in model.parameters() if p.requires_grad]
    assert learning
    assert all(p.grad is not None and not p.grad.any() for p in learning)


@pytest.mark.parametrize("pixels", [None, torch.zeros(0, 3, 64, 64)])
def test_no_image_and_none_are_the_same(model, text, pixels):
    PATCH.apply(model)

    assert model(**text, pixel_values=pixels).loss.requires_grad


def test_a_learning_language_model_keeps_its_gradients(model, text):
    model.transformer.h.requires_grad_(True)
    model(**text).loss.backward()
    before = {name: p.grad.clone() for name, p in model.transformer.h.named_parameters()}
    model.zero_grad()
    PATCH.apply(model)
    model(**text).loss.backward()

    assert all(torch.equal(p.grad, before[name]) for name, p in model.transformer.h.named_parameters())


def test_works_under_peft_which_calls_forward_past_the_models_hooks(model, text):
    PATCH.apply(model)
    peft = get_peft_model(model, LoraConfig(target_modules=["attn_pool.attn.out_proj"]))
    peft.train()

    peft(**text).loss.backward()

    lora = [p for name, p in peft.named_parameters() if "lora_A" in name]
    assert lora
    assert all(p.grad is not None for p in lora)


def test_evaluation_is_left_alone(model, text):
    PATCH.apply(model)

    assert not model.eval()(**text).loss.requires_grad


def test_a_batch_with_an_image_is_left_alone():
    model = tiny_model(visual={"lora_dropout": 0.0}).train()
    config = model.config
    block = [config.image_start_id, *[config.image_pad_id] * config.image_token_span, config.image_end_id]
    ids = torch.tensor([[*block, 5, 6]])
    inputs = {"input_ids": ids, "labels": ids, "pixel_values": torch.ones(1, 3, 64, 64)}
    gradients = []
    for apply in (lambda model: None, PATCH.apply):
        apply(model)
        model.zero_grad()
        model(**inputs).loss.backward()
        gradients.append([p.grad.clone() for p in model.transformer.visual.attn_pool.parameters() if p.requires_grad])

    assert all(torch.equal(before, after) and before.any() for before, after in zip(*gradients, strict=True))


def test_undo_removes_it(model, text):
    undo = PATCH.apply(model)
    undo()

    assert not model(**text).loss.requires_grad


def test_a_model_of_another_structure_is_refused():
    with pytest.raises(ModelError, match="another structure"):
        PATCH.apply(nn.Linear(1, 1))


@pytest.fixture
def encoded():
    """Dummy images encoded so far."""
    return []


@pytest.fixture
def partitioned(model, encoded):
    """The same model as ZeRO-3 would mark it, patched with a dummy image."""

    def dummy():
        encoded.append(1)
        return model.transformer.visual.encode(torch.zeros(1, 3, 64, 64))

    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id = number
    patch = keep_text_only_trainable("transformer", ["transformer.visual"], embeddings="transformer.wte", dummy=dummy)
    patch.apply(model)
    return model


def visited(model, inputs):
    """The modules in the order in which they are called, which is the order in which ZeRO-3 gathers."""
    order = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    model(**inputs)
    for handle in handles:
        handle.remove()
    return order


def test_under_zero_3_a_text_only_batch_visits_the_modules_that_an_image_would(partitioned, text):
    config = partitioned.config
    block = [config.image_start_id, *[config.image_pad_id] * config.image_token_span, config.image_end_id]
    ids = torch.tensor([[*block, 5, 6]])
    with_image = visited(partitioned, {"input_ids": ids, "labels": ids, "pixel_values": torch.ones(1, 3, 64, 64)})

    assert visited(partitioned, text) == with_image
    assert visited(partitioned.eval(), text) == with_image


def test_under_zero_3_the_dummy_image_changes_no_logit_and_gives_gradients_of_zero(partitioned, text):
    plain = tiny_model().train()(**text)
    outputs = partitioned(**text)
    outputs.loss.backward()

    assert torch.equal(outputs.logits, plain.logits)
    learning = [p for p in partitioned.transformer.visual.parameters() if p.requires_grad]
    assert all(p.grad is not None and not p.grad.any() for p in learning)


def test_without_zero_3_no_dummy_image_is_encoded(partitioned, text, encoded):
    for parameter in partitioned.parameters():
        del parameter.ds_id
    partitioned(**text).loss.backward()

    assert not encoded


def test_tokens_after_the_prompt_need_no_dummy_image(partitioned, text, encoded):
    partitioned.eval().generate(text["input_ids"], max_new_tokens=3, do_sample=False, eos_token_id=-1)

    assert len(encoded) == 1
