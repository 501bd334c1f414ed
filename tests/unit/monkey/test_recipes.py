"""Recipes as the documentation describes them, trained with a tiny Monkey and an unmodified Trainer."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from transformers import Trainer

from vlm_lora_monkey.tiny import write_tiny_folder
from vlm_lora_plugin import VlmLoraCallback, load, load_adapter, prepare, training_arguments
from vlm_lora_plugin.contract.example import Example, Message

LAYERS = [f"transformer.h.{block}" for block in (0, 1)]
ALL = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
USUAL = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2")
RECIPES = {
    "DoRA": (
        {"components": {"language": "lora"}, "lora": {"use_dora": True}},
        {f"{layer}.{name}" for layer in LAYERS for name in USUAL},
    ),
    "rsLoRA on a pattern": (
        {"rules": [{"pattern": r".*\.c_attn", "means": "lora"}], "lora": {"use_rslora": True, "r": 4}},
        {f"{layer}.attn.c_attn" for layer in LAYERS},
    ),
    "all-linear of one component": (
        {"components": {"language": "lora"}, "lora": {"target_modules": {"language": "all-linear"}}},
        {f"{layer}.{name}" for layer in LAYERS for name in ALL},
    ),
    "several conditions and a group with its rate": (
        {
            "preset": "lora",
            "rules": [
                {
                    "component": "language",
                    "layers": "1-",
                    "module_types": "Linear",
                    "exclude": r".*\.mlp\..*",
                    "means": "lora",
                    "group": "upper",
                },
                {"component": "language", "module_types": "RMSNorm", "means": "full", "group": "norms"},
            ],
            "optimizer": {"learning_rate": {"upper": 2e-3}, "weight_decay": {"norms": 0.0}},
        },
        {"transformer.h.1.attn.c_attn", "transformer.h.1.attn.c_proj"},
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("monkey") / "model")


def rows(processor):
    file = io.BytesIO()
    Image.new("RGB", (20, 20), "orange").save(file, "PNG")
    turns = (Message("user", "<image>Which colour?"), Message("assistant", "orange"))
    return [processor.encode(Example(turns, (file.getvalue(),)))] * 4


@pytest.mark.parametrize("name", RECIPES)
def test_it_adapts_exactly_the_layers_it_names_everything_moves_and_it_is_reloaded(folder, tmp_path, name):
    document, layers = RECIPES[name]
    settings = {"max_steps": 3, "gradient_accumulation_steps": 1, "dataloader_num_workers": 0}
    optimizer = {"warmup_ratio": 0.0, **document.get("optimizer", {})}
    base, processor = load(folder)
    model = prepare(base, {**document, "optimizer": optimizer, "training": settings})
    assert set(model.vlm_lora.trainable.lora_targets) == layers
    before = {key: tensor.detach().clone() for key, tensor in model.named_trainables().items()}
    arguments = training_arguments(model, tmp_path / "run", disable_tqdm=True, save_strategy="no")
    data = rows(processor)
    Trainer(model, arguments, processor.collate, data, callbacks=[VlmLoraCallback()]).train()
    after = model.named_trainables()
    assert [key for key in before if torch.equal(before[key], after[key])] == []
    model.save_pretrained(tmp_path / "adapter")
    batch = processor.collate(data[:1])
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        assert torch.equal(load_adapter(load(folder)[0], tmp_path / "adapter")(**batch).logits, expected)


def test_the_rates_of_groups_are_those_of_the_recipe(folder):
    document, _ = RECIPES["several conditions and a group with its rate"]
    entries = prepare(load(folder)[0], document).vlm_lora.trainable.parameters
    rates = {(entry.group, entry.learning_rate) for entry in entries}
    assert rates == {("vision.lora", 1e-4), ("aligner.full", 1e-5), ("upper", 2e-3), ("norms", 1e-5)}
