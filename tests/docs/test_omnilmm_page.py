"""The numbers of the page on three 24 GB cards are those that the code gives, and its adapters behave as it says."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from vlm_lora_omnilmm.size import SIZE
from vlm_lora_omnilmm.tiny import tiny_model
from vlm_lora_plugin import prepare
from vlm_lora_plugin.planning.plan import plan_hardware
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager

PAGE = (Path(__file__).parents[2] / "docs/how-to/omnilmm-on-three-24gb-cards.md").read_text("utf-8")
GIB = 2**30


def cells(row):
    """What stands in the last two columns of the row that starts with these words."""
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| {row}"))
    return [float(re.sub(r"[^\d.]", "", cell)) for cell in line.strip("|").split("|")[-2:]]


def memory(preset, **hardware):
    family = get_manager().family("omnilmm")
    recipe = resolve_recipe({"preset": preset, "hardware": {"gpu_memory": 24, **hardware}}, family)
    plan = plan_hardware(recipe, family).memory
    assert plan is not None
    return plan


def two(numbers):
    return [round(number, 2) for number in numbers]


def test_what_one_process_would_need():
    alone = [memory(preset, gpus=1) for preset in ("lora-text", "lora")]

    assert cells("their weights, gradients") == two(plan.training_state for plan in alone)
    assert cells("frozen weights") == two(plan.weights for plan in alone)
    assert cells("activations | each") == two(plan.activations for plan in alone)
    assert cells("logits, where") == two(plan.logits for plan in alone)
    assert cells("CUDA context") == two(plan.reserve for plan in alone)
    assert cells("**one process") == [round(plan.total, 1) for plan in alone]


def test_what_each_of_three_cards_needs():
    cards = [memory(preset, gpus=3) for preset in ("lora-text", "lora")]

    assert cells("a third of the frozen weights") == two(plan.weights for plan in cards)
    assert cells("a third of the training state") == two(plan.training_state for plan in cards)
    assert cells("gathered at a time") == two(plan.gathered for plan in cards)
    assert cells("activations | 0") == two(plan.activations for plan in cards)
    assert cells("logits | 0") == two(plan.logits for plan in cards)
    assert cells("**sum**") == [round(plan.total, 1) for plan in cards]


def test_what_the_whole_tower_needs():
    shared, offloaded = memory("lora+vision", gpus=3), memory("lora+vision", gpus=3, offload=True)
    text = " ".join(PAGE.split())

    assert f"Adam states: {shared.total:.1f} GiB a card" in text
    assert f"takes {offloaded.total:.1f} GiB a card and pins {offloaded.pinned_host:.1f} GiB of the host's" in text


def test_the_formulas_give_their_figures():
    language = SIZE.components["language"]
    rows = 2048

    assert f"({2 * 4096 * rows * language.blocks / GIB:.2f} GiB)" in PAGE
    assert f"{language.kept_per_position:,} bytes x 2048 ({language.kept_per_position * rows / GIB:.2f} GiB)" in PAGE
    assert f"would take {language.kept_per_position * rows * language.blocks / GIB:.1f} GiB" in PAGE
    assert f"{12 * SIZE.vocabulary * 256 / GIB:.2f} GiB for 256" in PAGE
    assert rows - SIZE.tokens_per_image == 1982
    assert sum(part.parameters for part in SIZE.components.values()) == 11_614_393_088


@pytest.mark.parametrize(("preset", "whole"), [("lora", False), ("lora-text", True)])
def test_peft_alone_reads_the_lora_of_an_adapter(preset, whole, tmp_path):
    model = prepare(tiny_model(), preset).eval()
    with torch.no_grad():
        for parameter in model.named_trainables().values():
            parameter += 0.1
    model.save_pretrained(tmp_path)
    base = tiny_model()
    ids = torch.arange(3, 20)[None]

    with nullcontext() if whole else pytest.warns(UserWarning, match="load_adapter reads base_trainables"):
        theirs = PeftModel.from_pretrained(base, tmp_path).eval()

    lora = {name: tensor for name, tensor in theirs.state_dict().items() if "lora_" in name}
    trained = model.state_dict()
    assert lora
    assert all(torch.equal(tensor, trained[name]) for name, tensor in lora.items())
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, model(ids).logits) is whole
