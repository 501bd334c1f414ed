"""The sizes in the families page are those of the model at its published size."""

import re
from pathlib import Path

import pytest
import torch

from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager
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


OMNILMM = {"hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 32009, "num_query": 64, "image_size": 448}
SECTIONS = {
    name.lower(): text for name, text in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}


@pytest.fixture(scope="module")
def models():
    from vlm_lora_monkey.configuration import MonkeyConfig
    from vlm_lora_monkey.modeling import MonkeyForCausalLM
    from vlm_lora_omnilmm.configuration import OmniLMMConfig
    from vlm_lora_omnilmm.modeling import OmniLMMForCausalLM

    with torch.device("meta"):
        return {
            "monkey": MonkeyForCausalLM(MonkeyConfig(**PUBLISHED)),
            "omnilmm": OmniLMMForCausalLM(OmniLMMConfig(**OMNILMM)),
        }


def selection(models, name, preset):
    family = get_manager().family(name)
    return resolve_selection(models[name], family, resolve_recipe(preset, family))


def last_cell(name, first):
    row = rf"^\| `?{re.escape(first)}`? \|.*\| ([\d,]+) \|$"
    return int(re.search(row, SECTIONS[name], re.MULTILINE)[1].replace(",", ""))


PRESETS = [
    ("monkey", "lora"),
    ("monkey", "lora-only"),
    ("monkey", "lora+llm"),
    ("monkey", "lora+llm-lora"),
    ("omnilmm", "lora"),
    ("omnilmm", "lora-text"),
    ("omnilmm", "lora+vision"),
]


@pytest.mark.parametrize("name", ["monkey", "omnilmm"])
def test_the_components_have_the_stated_sizes(models, name):
    totals = dict(selection(models, name, "lora").totals)
    assert totals == {component: last_cell(name, component) for component in totals}
    assert f"{sum(totals.values()):,} parameters" in SECTIONS[name]
    assert f"{sum(totals.values()) * 2 / 2**30:.2f} GiB in bf16" in SECTIONS[name]


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_the_presets_train_the_stated_number_of_parameters(models, name, preset):
    assert sum(parameter.numel for parameter in selection(models, name, preset).parameters) == last_cell(name, preset)


def test_an_image_takes_the_stated_number_of_tokens(models):
    assert f"{models['monkey'].config.image_token_span} tokens" in SECTIONS["monkey"]
    assert re.search(rf"becomes {models['omnilmm'].config.num_query}\s+tokens", SECTIONS["omnilmm"])
