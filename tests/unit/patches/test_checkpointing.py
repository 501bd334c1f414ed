from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from vlm_lora_monkey.names import COMPONENTS
from vlm_lora_monkey.tiny import tiny_model
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.patches.checkpointing import checkpoint_blocks
from vlm_lora_plugin.vocabulary import Component

PARTS = {component.name: component for component in COMPONENTS if component.blocks}


@pytest.fixture
def model():
    model = tiny_model(visual={"lora_dropout": 0.0}).train()
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b.weight"):
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def inputs(model):
    config = model.config
    block = [config.image_start_id, *[config.image_pad_id] * config.image_token_span, config.image_end_id]
    ids = torch.tensor([[*block, 5, 6, 7]])
    return {"input_ids": ids, "labels": ids, "pixel_values": torch.ones(1, 3, 64, 64)}


def gradients(model, inputs):
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def calls(model, inputs):
    """How often the blocks of each part run in one forward and backward."""
    counts = dict.fromkeys(PARTS, 0)

    def count(part):
        counts[part] += 1

    removers = [
        # On a layer inside, since a recomputed block is not entered through its own hooks.
        module.ln_1.register_forward_hook(lambda *_, part=part: count(part))
        for part, component in PARTS.items()
        for name, module in model.named_modules()
        if re.fullmatch(component.blocks, name)
    ]
    gradients(model, inputs)
    for remover in removers:
        remover.remove()
    return counts


@pytest.mark.parametrize("parts", [("vision",), ("language",), ("vision", "language")])
def test_gradients_are_equal_to_the_last_bit(model, inputs, parts):
    plain = gradients(model, inputs)
    for part in parts:
        checkpoint_blocks(PARTS[part]).apply(model)
    leaner = gradients(model, inputs)

    assert plain.keys() == leaner.keys()
    assert all(torch.equal(plain[name], leaner[name]) for name in plain)


def test_only_the_chosen_part_is_recomputed(model, inputs):
    plain = calls(model, inputs)
    assert plain == {"vision": 2 * 5, "language": 2}

    undo = checkpoint_blocks(PARTS["vision"]).apply(model)
    assert calls(model, inputs) == {"vision": 2 * 2 * 5, "language": 2}
    undo()
    checkpoint_blocks(PARTS["language"]).apply(model)
    assert calls(model, inputs) == {"vision": 2 * 5, "language": 2 * 2}


def test_frozen_inputs_do_not_stop_the_gradient(model, inputs):
    """What reentrant checkpointing gets wrong: blocks whose input needs no gradient."""
    model.requires_grad_(False)
    learning = [p for name, p in model.named_parameters() if "lora" in name]
    for parameter in learning:
        parameter.requires_grad_(True)
    for component in PARTS.values():
        checkpoint_blocks(component).apply(model)

    assert len(gradients(model, inputs)) == len(learning) == 72


def test_evaluation_recomputes_nothing(model, inputs):
    for component in PARTS.values():
        checkpoint_blocks(component).apply(model)
    model.eval()

    assert calls(model, inputs) == {"vision": 2 * 5, "language": 2}


@pytest.mark.parametrize("enabled_before", [False, True])
def test_undo_restores_exactly_what_was(model, enabled_before):
    if enabled_before:
        model.gradient_checkpointing_enable({"use_reentrant": True})
    before = [dict(vars(module)) for module in model.modules()]

    undos = [checkpoint_blocks(component).apply(model) for component in PARTS.values()]
    assert all(block.gradient_checkpointing for block in model.transformer.h)
    for undo in reversed(undos):
        undo()

    assert [dict(vars(module)) for module in model.modules()] == before


def test_blocks_that_are_not_ours_are_refused(model):
    model.transformer.h[1] = nn.Identity()

    with pytest.raises(ModelError, match=r"language blocks .* cannot be checkpointed\n.*Identity"):
        checkpoint_blocks(PARTS["language"]).apply(model)
    assert not model.is_gradient_checkpointing


def test_a_pattern_that_matches_nothing_is_blamed_on_the_pattern(model):
    component = Component("language", ("transformer",), blocks=r"transformer\.layers\.\d+")
    with pytest.raises(ModelError, match="matches no module: the family's plugin is wrong"):
        checkpoint_blocks(component).apply(model)
