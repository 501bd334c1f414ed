"""Swift with a family whose images differ in size: lists of pixels, the processor's settings, mixtures."""

import json

import pytest
import torch
from PIL import Image

from vlm_lora_plugin import get_manager, load
from vlm_lora_plugin.contract import MeasuringProcessor
from vlm_lora_plugin.errors import RecipeError
from vlm_lora_plugin.frameworks.swift.dataset import read_datasets, with_system_prompt
from vlm_lora_plugin.planning.resolve import resolve_recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from vlm_lora_xcomposer.tiny import write_tiny_folder

    return write_tiny_folder(tmp_path_factory.mktemp("xcomposer") / "base")


@pytest.fixture
def family():
    return get_manager().family("xcomposer")


@pytest.fixture
def recipe(family):
    return resolve_recipe({"data": {"processor": {"hd_num": 3}}}, family)


@pytest.fixture
def mixture(tmp_path):
    """Two rows with images of different shapes, each drawn twice."""
    rows = []
    for name, size in (("wide.png", (90, 30)), ("tall.png", (30, 60))):
        Image.new("RGB", size, (200, 20, 20)).save(tmp_path / name)
        turns = [{"from": "user", "value": "<ImageHere>What?"}, {"from": "assistant", "value": name}]
        rows.append({"image": [name], "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    path = tmp_path / "data.txt"
    path.write_text("rows.json 0.004\n")
    return path


def test_the_template_batches_images_of_different_sizes(swift, base, recipe, family, mixture):
    from vlm_lora_plugin.frameworks.swift.template import VlmLoraTemplate

    processor = load(base, recipe, device="meta")[1]
    rows = list(read_datasets([str(mixture)], processor, recipe.data, family, seed=recipe.seed))
    template = VlmLoraTemplate.__new__(VlmLoraTemplate)
    template.processor = type("Carrier", (), {"inner": processor})()
    batch = template.data_collator([{**row, "length": len(row["input_ids"])} for row in rows])
    expected = [image for row in rows for image in row["pixel_values"]]
    assert len({image.shape for image in expected}) == 2
    assert all(torch.equal(one, other) for one, other in zip(batch["pixel_values"], expected, strict=True))


def test_a_mixture_is_drawn_by_the_recipes_seed(base, recipe, family, mixture):
    processor = load(base, recipe, device="meta")[1]
    one, other = (read_datasets([str(mixture)], processor, recipe.data, family, seed=seed) for seed in (1, 1))
    assert [row["input_ids"].tolist() for row in one] == [row["input_ids"].tolist() for row in other]
    assert len(one) == 4


def test_a_system_message_leaves_the_processors_settings_and_measuring_as_they_are(base, recipe):
    prompted = with_system_prompt(load(base, recipe, device="meta")[1], "Be kind.")
    assert prompted.hd_num == 3
    assert isinstance(prompted, MeasuringProcessor)
    assert not hasattr(prompted, "none_of_its_settings")


def test_a_processor_without_the_recipes_settings_is_refused(base, recipe, family, mixture):
    with pytest.raises(RecipeError, match=r"hd_num is 3, not 16"):
        read_datasets([str(mixture)], load(base, device="meta")[1], recipe.data, family)
