"""What was trained comes back from disk equal, in this process or another."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_cases import WITH_PEFT, logits, tuned
from toy_family import PRESETS, toy_config, toy_model
from warm import warm

from vlm_lora_plugin import load_adapter, prepare


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_comes_back_with_equal_logits(toy, tmp_path, preset, dtype):
    model = tuned(preset, dtype=dtype)
    model.save_pretrained(tmp_path)
    again = load_adapter(toy_model(dtype=dtype), tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_loaded_model_can_go_on_learning(saved):
    model, folder = saved
    again = load_adapter(toy_model().train(), folder, is_trainable=True)
    assert again.training
    learning = {name for name, parameter in again.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_base_may_be_a_folder(toy, tmp_path):
    base = toy_model(dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    model = tuned(dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(load_adapter(tmp_path / "base", tmp_path / "adapter")), logits(model))


def test_a_fresh_process_gives_equal_logits(toy, tmp_path):
    base = toy_model()
    base.save_pretrained(tmp_path / "base")
    model = tuned()
    model.save_pretrained(tmp_path / "adapter")
    program = """
import sys, torch
from toy_family import ToyAdapter, toy_batch
from vlm_lora_plugin import get_manager, load_adapter
get_manager().register(ToyAdapter())
model = load_adapter(sys.argv[1], sys.argv[2])
with torch.no_grad():
    torch.save(model(**toy_batch()).logits, sys.argv[3])
"""
    paths = [str(tmp_path / name) for name in ("base", "adapter", "logits.pt")]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    warm("trainer").run([sys.executable, "-c", program, *paths], check=True, env={**os.environ, "PYTHONPATH": path})
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))


def test_in_place_loading_restores_and_keeps_the_mode_for_training(saved):
    model, folder = saved
    fresh = prepare(toy_model().train(), WITH_PEFT)
    fresh.load_adapter(folder, "default", is_trainable=True)
    assert fresh.training
    assert torch.equal(logits(fresh.eval()), logits(model))


def test_in_place_loading_for_use_switches_to_evaluation(saved):
    _, folder = saved
    model = prepare(toy_model().train(), WITH_PEFT)
    model.load_adapter(folder, "default")
    assert not model.training


def test_the_base_s_config_survives_saving_dtype_and_use(toy, tmp_path):
    from vlm_lora_plugin.selection.manifest import base_config

    base = toy_model()
    before = base_config(base.config)
    base.save_pretrained(tmp_path)
    again = type(base).from_pretrained(tmp_path, dtype=torch.bfloat16)
    again.config.use_cache = not again.config.use_cache
    assert base_config(again.config) == before
    assert base_config(toy_config(rope_theta=5e5)) != before
