"""The sizes in the families page are those of the model at its published size."""

import re
from pathlib import Path

import pytest
import torch

from vlm_lora_plugin.manager import get_manager
from vlm_lora_plugin.recipe import resolve_recipe
from vlm_lora_plugin.selection.resolve import resolve_selection

PAGE = (Path(__file__).parents[2] / "docs/reference/families.md").read_text()
PUBLISHED = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "kv_channels": 128,
    "intermediate_size": 22016,
    "vocab_size": 151936,
    "seq_length": 2048,
    "max_position_embeddings": 8192,
    "visual": {
        "image_size": 896,
        "patch_size": 14,
        "width": 1664,
        "layers": 48,
        "heads": 16,
        "mlp_ratio": 4.9231,
        "output_dim": 4096,
        "image_start_id": 151857,
        "lora_repeat_num": 4,
    },
}


@pytest.fixture(scope="module")
def monkey():
    from vlm_lora_monkey.configuration import MonkeyConfig
    from vlm_lora_monkey.modeling import MonkeyForCausalLM

    with torch.device("meta"):
        return MonkeyForCausalLM(MonkeyConfig(**PUBLISHED))


def selection(model, preset):
    family = get_manager().family("monkey")
    return resolve_selection(model, family, resolve_recipe(preset, family))


def last_cell(first):
    return int(re.search(rf"^\| `?{re.escape(first)}`? \|.*\| ([\d,]+) \|$", PAGE, re.MULTILINE)[1].replace(",", ""))


def test_the_components_have_the_stated_sizes(monkey):
    totals = dict(selection(monkey, "lora").totals)
    assert totals == {name: last_cell(name) for name in totals}
    assert f"{sum(totals.values()):,} parameters" in PAGE
    assert f"{sum(totals.values()) * 2 / 2**30:.2f} GiB in bf16" in PAGE


@pytest.mark.parametrize("preset", ["lora", "lora-only", "lora+llm", "lora+llm-lora"])
def test_the_presets_train_the_stated_number_of_parameters(monkey, preset):
    assert sum(parameter.numel for parameter in selection(monkey, preset).parameters) == last_cell(preset)


def test_an_image_takes_the_stated_number_of_tokens(monkey):
    assert f"{monkey.config.image_token_span} tokens" in PAGE
