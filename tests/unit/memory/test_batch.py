"""A batch of a stated shape is one that the model takes, whichever way its images stand in a row."""

import pytest
import torch
from measuring import SMALL, Setting

from vlm_lora_plugin.errors import PlanError
from vlm_lora_plugin.memory.batch import stand_in_batch

MODELS = sorted(SMALL)


def model_of(name):
    with torch.device("meta"):
        return SMALL[name][0](Setting(name, {"preset": "lora"}).config())


@pytest.mark.parametrize("name", MODELS)
def test_rows_have_the_stated_length_answers_and_images(name):
    model, size = model_of(name), SMALL[name][3]
    batch = stand_in_batch(model, rows=2, tokens=300, answers=40, image_sizes=[size, size])
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 300)
    assert (batch["labels"] != -100).sum(-1).tolist() == [40, 40]
    assert model.count_images(batch["input_ids"], batch["pixel_values"]) == [2, 2]
    assert all(image.is_meta for image in batch["pixel_values"])


@pytest.mark.parametrize("name", MODELS)
def test_a_row_without_images_has_no_pixels(name):
    batch = stand_in_batch(model_of(name), rows=1, tokens=50, answers=10, image_sizes=[])
    assert "pixel_values" not in batch


def test_a_row_that_is_too_short_for_its_images_is_refused():
    with pytest.raises(PlanError, match=r"10 tokens cannot hold 1 images"):
        stand_in_batch(model_of("monkey"), rows=1, tokens=10, answers=5, image_sizes=[(64, 64)])


@pytest.mark.parametrize(
    ("hd_num", "crops"), [(1, (1, 1)), (16, (4, 4)), (25, (5, 5)), (55, (5, 11)), (7, (1, 7))], ids=str
)
def test_the_largest_image_of_4khd_has_as_many_crops_as_may_be_in_the_least_elongated_grid(hd_num, crops):
    model = model_of("xcomposer2_4khd")
    side = model.config.image_size
    assert model.largest_image_size({"hd_num": hd_num}) == (crops[0] * side, crops[1] * side)


def test_an_image_is_as_large_as_the_processor_makes_it():
    model = model_of("xcomposer2_4khd")
    side = model.config.image_size
    assert model.image_size(500, 1000, {"hd_num": 2}) == (side, 2 * side)
    assert model_of("monkey").image_size(500, 1000, {}) == (64, 64)
