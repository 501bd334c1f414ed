"""The sizes of XComposer in the families page are those of its variants at their published size."""

import re
from pathlib import Path

import pytest
import torch

from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.selection.resolve import resolve_selection
from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.modeling import XComposerForCausalLM

PAGE = (Path(__file__).parents[2] / "docs/reference/families.md").read_text()
SECTION = PAGE.split("\n## InternLM-XComposer\n")[1].split("\n## ")[0]
COLUMNS = ("xcomposer2_4khd", "xcomposer2_5", "xcomposer2")


def cell(first, column):
    row = re.search(rf"^\| {re.escape(first)}[^|]*\|(.*)\|$", SECTION, re.MULTILINE)
    return row[1].split("|")[-3:][COLUMNS.index(column)].strip()


def number(first, column):
    return int(cell(first, column).replace(",", ""))


@pytest.fixture(scope="module")
def models():
    with torch.device("meta"):
        return {variant: XComposerForCausalLM(XComposerConfig(variant=variant)) for variant in COLUMNS}


def selection(model, preset):
    family = get_manager().family("xcomposer")
    return resolve_selection(model, family, resolve_recipe(preset, family))


@pytest.mark.parametrize("variant", COLUMNS)
def test_the_variants_have_the_stated_sizes(models, variant):
    model = models[variant]
    totals = dict(selection(model, "lora").totals)
    assert totals == {name: number(f"{name}:", variant) for name in totals}
    assert sum(totals.values()) == number("all", variant)
    assert f"{sum(totals.values()) * 2 / 2**30:.2f}" == cell("GiB in bf16", variant)
    partial = sum(p.numel() for name, p in model.named_parameters() if "Plora" in name)
    assert partial == number("partial LoRA", variant)


@pytest.mark.parametrize("variant", COLUMNS)
@pytest.mark.parametrize("preset", sorted(get_manager().family("xcomposer").presets))
def test_the_presets_train_the_stated_number_of_parameters(models, preset, variant):
    stated = cell(f"`{preset}`", variant)
    if (preset, variant) == ("lora+separators", "xcomposer2"):
        assert stated == ""
        return
    assert sum(p.numel for p in selection(models[variant], preset).parameters) == int(stated.replace(",", ""))


@pytest.mark.parametrize("variant", COLUMNS)
def test_the_sizes_of_crops_are_the_variants(variant):
    config = XComposerConfig(variant=variant)
    assert cell("variant", variant) == f"`{variant}`"
    assert cell("side of a crop", variant).startswith(str(config.image_size))
    assert cell("tokens of a crop", variant).split()[0] == f"{config.tokens_per_side**2:,}"
    assert cell("rank of partial LoRA", variant) == f"{config.plora_of('wqkv').r} / {config.plora_of('w1').r}"
