from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from vlm_lora_monkey.names import ARCHITECTURE
from vlm_lora_monkey.tiny import tiny_model
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.patches import text_only, text_only_batches
from vlm_lora_plugin.patches.text_only import keep_text_only_trainable

PATCH = keep_text_only_trainable("transformer", ["transformer.visual"])
LOOKING = text_only_batches(tiny_model(), ARCHITECTURE)


@pytest.fixture
def ranks(monkeypatch):
    """As if other processes trained too."""
    monkeypatch.setattr(text_only, "several_ranks", lambda: True)


def calls(model):
    """Names of the modules that are called, in order."""
    order = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    return order


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


def test_where_nothing_else_learns_the_loss_goes_backward_and_reaches_nothing(model, text):
    """Upstream's own loss has no gradient there."""
    PATCH.apply(model)
    plain = tiny_model().train()(**text).loss

    loss = model(**text).loss
    loss.backward()

    assert torch.equal(loss, plain)
    assert not [name for name, p in model.named_parameters() if p.grad is not None]


def test_in_one_process_what_is_not_reached_has_no_gradient_and_an_optimizer_skips_it(model, text):
    model.transformer.h.requires_grad_(True)
    PATCH.apply(model)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2, weight_decay=0.1)
    image = image_and_text(model)[0]
    for inputs in (image, text):
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()

    moved = {name for name, p in model.named_parameters() if p.requires_grad and not torch.equal(p, before[name])}
    assert moved
    assert not any(name.startswith("transformer.visual") for name in moved), "along its momentum, or by its decay"
    assert all(name.startswith("transformer.h") for name in moved)


def test_gradients_of_other_rows_of_the_step_stay_as_they_are(model, text):
    model.transformer.h.requires_grad_(True)
    PATCH.apply(model)
    model(**image_and_text(model)[0]).loss.backward()
    vision = {name: p.grad.clone() for name, p in model.transformer.visual.named_parameters() if p.grad is not None}
    model(**text).loss.backward()

    assert vision
    assert all(
        torch.equal(dict(model.transformer.visual.named_parameters())[name].grad, vision[name]) for name in vision
    )


def test_what_upstream_multiplies_by_zero_gets_a_gradient_of_zero(model, text):
    patch = keep_text_only_trainable("transformer", ["transformer.visual"], zeroed=["transformer.visual.attn_pool"])
    patch.apply(model)
    model(**text).loss.backward()

    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    assert touched
    assert touched == {name for name, p in model.named_parameters() if "attn_pool" in name and p.requires_grad}
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_zero_in_one_process_and_a_loss_scale_need_a_gradient_of_zero(model, text, monkeypatch):
    PATCH.apply(model)
    learning = [p for p in model.parameters() if p.requires_grad]
    with torch.autocast("cpu", dtype=torch.float16):
        model(**text).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in learning)

    model.transformer.h.requires_grad_(True)
    model.zero_grad()
    model.transformer.visual.attn_pool.query._hp_mapping = 0  # ZeRO-1's and 2's mark
    model(**text).loss.backward()
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
    keep_text_only_trainable("transformer", ["transformer.visual"], zeroed=["transformer.visual"]).apply(model)
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


def image_and_text(model):
    config = model.config
    block = [config.image_start_id, *[config.image_pad_id] * config.image_token_span, config.image_end_id]
    seen, unseen = torch.tensor([[*block, 5, 6]]), torch.tensor([[5, 6]])
    return (
        {"input_ids": seen, "labels": seen, "pixel_values": torch.ones(1, 3, 64, 64)},
        {"input_ids": unseen, "labels": unseen},
    )


def test_on_several_ranks_text_calls_the_same_modules_in_the_same_order_as_an_image(model, ranks):
    LOOKING.apply(model)
    order, orders = calls(model), []
    for inputs in image_and_text(model):
        order.clear()
        model(**inputs)
        orders.append(list(order))

    assert orders[0] == orders[1]
    assert "transformer.visual.attn_pool" in orders[0]


def test_on_several_ranks_gradients_come_in_the_same_order_as_with_an_image(model, ranks):
    """ZeRO-2 reduces them in the order in which they come."""
    LOOKING.apply(model)
    model.transformer.h.requires_grad_(True)
    order, orders = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient, name=name: order.append(name))
    for inputs in image_and_text(model):
        order.clear()
        model(**inputs).loss.backward()
        orders.append(list(order))

    assert orders[0] == orders[1]


def test_on_several_ranks_text_gives_the_same_loss_and_vision_gradients_of_zero(model, text, ranks):
    LOOKING.apply(model)
    plain = tiny_model().train()(**text).loss

    loss = model(**text).loss
    loss.backward()

    assert torch.equal(loss, plain)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)


def test_alone_nothing_is_looked_at(model, text):
    LOOKING.apply(model)
    order = calls(model)

    model(**text).loss.backward()

    assert "transformer.visual" not in order


@pytest.mark.parametrize("state", ["frozen", "evaluation"])
def test_on_several_ranks_nothing_is_looked_at_where_no_rank_waits(model, text, ranks, state):
    LOOKING.apply(model)
    if state == "frozen":
        model.transformer.visual.requires_grad_(False)
    else:
        model.eval()
    order = calls(model)

    model(**text)

    assert "transformer.visual" not in order


@pytest.mark.parametrize("training", [True, False])
def test_sharded_weights_are_looked_through_frozen_and_in_evaluation_too(model, text, ranks, training):
    LOOKING.apply(model)
    model.requires_grad_(False).train(training)
    model.transformer.visual.proj.ds_id = 0  # ZeRO-3's mark
    order = calls(model)

    model(**text)

    assert "transformer.visual" in order


@pytest.mark.parametrize("mark", ["ds_id", "_hp_mapping"])
def test_a_family_that_cannot_look_is_refused_under_zero(model, text, ranks, mark):
    PATCH.apply(model)
    setattr(model.transformer.visual.attn_pool.query, mark, 0)

    with pytest.raises(ModelError, match="cannot be used under ZeRO"):
        model(**text)


def test_undo_takes_the_looking_back(model, text, ranks):
    undo = LOOKING.apply(model)
    undo()
    order = calls(model)

    assert not model(**text).loss.requires_grad
    assert "transformer.visual" not in order


def test_a_process_that_was_started_as_one_of_a_group_has_gradients_of_zero(model, text, monkeypatch):
    """DistributedDataParallel waits for each, also where the process is the only one."""
    monkeypatch.setattr(text_only, "in_group", lambda: True)
    PATCH.apply(model)
    model(**text).loss.backward()

    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)
