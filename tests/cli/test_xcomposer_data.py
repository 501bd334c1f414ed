"""A 4KHD job says before it starts whether its images fit."""

import json
import re

import pytest
import yaml
from PIL import Image

from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.images import number_of_image_tokens, transformed_size

FAST = ("--set", "training.gradient_accumulation_steps=1", "--set", "training.dataloader_num_workers=0")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from vlm_lora_xcomposer.tiny import write_tiny_folder

    return write_tiny_folder(tmp_path_factory.mktemp("xcomposer") / "base")


@pytest.fixture
def rows(tmp_path):
    """Three rows in upstream's form: a picture that takes 54 of 55 crops, a square one, and text."""
    Image.new("RGB", (700, 400), (200, 20, 20)).save(tmp_path / "wide.png")
    Image.new("RGB", (50, 50), (20, 20, 200)).save(tmp_path / "square.png")
    answer = {"from": "assistant", "value": "yes"}
    pictures = [
        {"image": [name], "conversations": [{"from": "user", "value": "<ImageHere>Is it?"}, answer]}
        for name in ("square.png", "wide.png")
    ]
    texts = [{"conversations": [{"from": "user", "value": "Is it?"}, answer]}]
    (tmp_path / "pictures.json").write_text(json.dumps(pictures))
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    (tmp_path / "data.txt").write_text("pictures.json 0.004\ntexts.json 0.002\n")
    return tmp_path


def crops(hd_num, max_length):
    return ("--set", f"data.processor.hd_num={hd_num}", "--set", f"data.max_length={max_length}")


def tokens(base, size, hd_num):
    config = XComposerConfig.from_pretrained(base)
    width, height = transformed_size(*size, config, hd_num)
    return number_of_image_tokens(height, width, config)


def test_an_image_of_54_crops_is_refused_with_what_it_needs_and_what_fits(vlm_lora, base, rows):
    outcome = vlm_lora("train", base, "-d", rows / "pictures.json", "-o", rows / "out", *crops(55, 200))
    assert outcome.code == 2
    message = " ".join(outcome.err.split())
    assert "2 of 2 rows cannot be used" in message
    wide = tokens(base, (700, 400), 55)
    needed = int(re.search(r"pictures\.json item 2: (\d+) tokens are needed", message)[1])
    assert f", {wide} of them for images at hd_num 55; max_length is 200" in message
    largest = int(re.search(r"or data\.processor\.hd_num to (\d+)", message)[1])
    assert f"set data.max_length to {needed}" in message
    assert not (rows / "out").exists()
    check = ("data-check", base, "-d", rows / "pictures.json")
    assert vlm_lora(*check, *crops(55, needed)).code == 0
    assert vlm_lora(*check, *crops(largest, 200)).code == 0
    assert vlm_lora(*check, *crops(55, needed - 1)).code == 2
    assert vlm_lora(*check, *crops(largest + 1, 200)).code == 2


def test_the_check_decodes_no_pixel(vlm_lora, base, rows, monkeypatch):
    def load(self):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    arguments = ("data-check", base, "-d", rows / "pictures.json", "--no-check-images", "--json", *crops(55, 1000))
    outcome = vlm_lora(*arguments, "--set", "data.truncation_strategy=right")
    document = json.loads(outcome.out)
    assert document["usable_rows"] == 2
    assert document["longest_row"].endswith("pictures.json item 2")
    assert document["tokens"]["max"] > tokens(base, (700, 400), 55)


def test_a_mixture_trains_with_the_recipes_crops(vlm_lora, base, rows):
    arguments = ("train", base, "-d", rows / "data.txt", "-o", rows / "out", "--max-steps", 2)
    outcome = vlm_lora(*arguments, *crops(4, 200), *FAST, "--preset", "lora-low-memory")
    assert outcome.code == 0, outcome.err
    recipe = yaml.safe_load((rows / "out" / "recipe.yaml").read_text())
    assert recipe["data"]["processor"] == {"hd_num": 4}
    assert (rows / "out" / "adapter").is_dir()
    assert re.search(r"training\s+6\s+4\s", outcome.out)
    assert f"load({str(base)!r}, recipe={str(rows / 'out' / 'recipe.yaml')!r})" in outcome.out


def test_a_typo_in_a_processor_setting_is_answered_with_the_nearest(vlm_lora, base, rows):
    outcome = vlm_lora("data-check", base, "-d", rows / "pictures.json", "--set", "data.processor.hdnum=4")
    assert outcome.code == 2
    assert "Did you mean hd_num?" in outcome.err


def test_a_wrong_line_of_a_mixture_is_named_before_anything_is_loaded(vlm_lora, base, rows):
    (rows / "data.txt").write_text("pictures.json 1\nmissing.json 1\n")
    outcome = vlm_lora("train", base, "-d", rows / "data.txt", "-o", rows / "out")
    assert outcome.code == 2
    assert "data.txt:2: there is no data file" in " ".join(outcome.err.split())


def test_presets_lists_the_processors_settings(vlm_lora):
    outcome = vlm_lora("presets", "xcomposer")
    assert "data.processor.hd_num: Most crops that one image is cut into" in outcome.out


def test_another_processor_than_the_recipes_is_refused(base, rows):
    from vlm_lora_plugin import ConversationDataset, get_manager, load
    from vlm_lora_plugin.errors import RecipeError
    from vlm_lora_plugin.planning.resolve import resolve_recipe

    family = get_manager().family("xcomposer")
    recipe = resolve_recipe({"data": {"processor": {"hd_num": 3}}}, family)
    with pytest.raises(RecipeError, match=r"hd_num is 3, not 16.*\n.*\n.*load\(folder, recipe\)"):
        ConversationDataset(rows / "pictures.json", load(base, device="meta")[1], recipe.data, family)
    data = ConversationDataset(rows / "pictures.json", load(base, recipe, device="meta")[1], recipe.data, family)
    assert data[0]["pixel_values"][0].shape == (3, 32, 32)


def test_a_job_is_not_resumed_with_another_file_of_its_mixture(vlm_lora, base, rows):
    arguments = ("train", base, "-d", rows / "data.txt", "-o", rows / "out")
    first = vlm_lora(*arguments, "--max-steps", 1, *crops(4, 200), *FAST, "--preset", "lora-low-memory")
    assert first.code == 0, first.err
    texts = rows / "texts.json"
    texts.write_text(texts.read_text().replace("yes", "Yes"))
    again = vlm_lora(*arguments, "--resume")
    assert again.code == 2
    assert "The data is not that of the job" in again.err
