"""`preprocess_images`: pictures through upstream's three transforms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.images import load_pixels, number_of_image_tokens, transformed_size

FOLDER = Path(__file__).parent / "xcomposer"
PICTURES = json.loads((FOLDER / "preprocess_images.json").read_text("utf-8"))["images"]
SAMPLES = load_file(FOLDER / "preprocess_images.safetensors")


def config_of(picture):
    transform, side = picture["key"].split(".")[0], picture["shape"][1]
    if transform.startswith("square"):
        return XComposerConfig(variant="xcomposer2", img_size=side)
    return XComposerConfig(variant={"hd336": "xcomposer2_4khd", "r560": "xcomposer2_5"}[transform])


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture["key"])
def test_pixels_and_image_tokens_equal_upstreams(picture):
    config = config_of(picture)
    pixels = load_pixels(FOLDER / "images" / picture["image"], config, picture.get("hd_num"))
    assert list(pixels.shape) == picture["shape"]
    rows, columns = (torch.linspace(0, length - 1, 20).long() for length in pixels.shape[1:])
    torch.testing.assert_close(pixels[:, rows][:, :, columns], SAMPLES[picture["key"]], rtol=0, atol=0)
    assert pixels.mean((1, 2)).tolist() == pytest.approx(picture["mean"], abs=1e-5)
    assert pixels.flatten(1).std(1).tolist() == pytest.approx(picture["std"], rel=1e-5)
    if "image_tokens" in picture:
        assert number_of_image_tokens(*pixels.shape[1:], config) == picture["image_tokens"]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture["key"])
def test_the_size_is_known_without_pixels(picture):
    with Image.open(FOLDER / "images" / picture["image"]) as opened:
        size = transformed_size(*opened.size, config_of(picture), picture.get("hd_num"))
    assert size == (picture["shape"][2], picture["shape"][1])


def test_every_fourth_pixel_of_a_whole_picture_equals_upstreams():
    picture = next(picture for picture in PICTURES if picture["key"] == "hd336.wide.4")
    pixels = load_pixels(FOLDER / "images" / picture["image"], config_of(picture), 4)
    assert torch.equal(pixels[:, ::4, ::4].half(), SAMPLES["full_stride4_fp16.hd336.wide.4"])
