"""Sizes and tokens of images, by arithmetic, for every hd_num."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_lora_plugin.data.pixels import CLIP_MEAN, CLIP_STD
from vlm_lora_plugin.errors import DataError
from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.images import load_pixels, number_of_image_tokens, transformed_size
from vlm_lora_xcomposer.presets import PRESETS

HD_NUMS = range(1, 56)
SIDES = (1, 2, 5, 17, 97, 336, 400, 560, 700, 1003, 1920, 4096)
SIZES = [(width, height) for width in SIDES for height in SIDES]

CROPS = {"xcomposer2_4khd": 336, "xcomposer2_5": 560}


@pytest.fixture(params=CROPS)
def config(request):
    return XComposerConfig(variant=request.param)


def columns_of(width, height, side, hd_num, *, enlarge):
    """How many crops a landscape image is wide, in exact numbers: as many as fit into hd_num with their rows."""
    ratio = Fraction(width, height)
    most = max(columns for columns in range(1, hd_num + 1) if columns * math.ceil(columns / ratio) <= hd_num)
    return most if enlarge else min(most, math.ceil(Fraction(3 * width, 2 * side)))


def reference_grid(width, height, config, hd_num):
    """Rows and columns of crops, or None where a side shrinks to nothing."""
    if width < height:
        turned = reference_grid(height, width, config, hd_num)
        return turned and turned[::-1]
    side = config.image_size
    columns = columns_of(width, height, side, hd_num, enlarge=config.variant == "xcomposer2_4khd")
    scaled_height = int(columns * side * Fraction(height, width))
    return (math.ceil(scaled_height / side), columns) if scaled_height else None


def reference_tokens(rows, columns, side):
    """Tokens line by line: of the whole image, of the separator between, of the crops put together."""
    line_end = 1
    whole = sum(side + line_end for _ in range(side))
    crops = sum(columns * side + line_end for _ in range(rows * side))
    return whole + 1 + crops


@pytest.mark.parametrize("hd_num", HD_NUMS)
def test_size_and_tokens_equal_the_reference(hd_num, config):
    for width, height in SIZES:
        grid = reference_grid(width, height, config, hd_num)
        if grid is None:
            with pytest.raises(ValueError, match="its other side would have none"):
                transformed_size(width, height, config, hd_num)
            continue
        rows, columns = grid
        size = transformed_size(width, height, config, hd_num)
        assert size == (columns * config.image_size, rows * config.image_size)
        assert rows * columns <= hd_num
        tokens = number_of_image_tokens(size[1], size[0], config)
        assert tokens == reference_tokens(rows, columns, {336: 12, 560: 20}[config.image_size])


def test_more_crops_never_make_fewer_tokens(config):
    """What the search for the largest hd_num that fits relies on."""
    for size in SIZES:
        grids = [reference_grid(*size, config, hd_num) for hd_num in HD_NUMS]
        tokens = [reference_tokens(*grid, 12) for grid in grids if grid]
        assert tokens == sorted(tokens)


@pytest.mark.parametrize("variant", ["xcomposer2_4khd", "xcomposer2_5"])
def test_by_default_an_image_of_any_shape_leaves_room_for_text(variant):
    config = XComposerConfig(variant=variant)
    shapes = [(across * 100, down * 100) for across in range(1, 40) for down in range(1, 40)]
    sizes = [transformed_size(*shape, config, config.hd_num) for shape in shapes]
    most = max(number_of_image_tokens(height, width, config) for width, height in sizes)
    assert most == {"xcomposer2_4khd": 2653, "xcomposer2_5": 3781}[variant]
    assert all(preset["data"]["max_length"] - most >= 300 for preset in PRESETS.values())


@pytest.mark.parametrize(("side", "tokens"), [(224, 256), (490, 1225)])
def test_version_2_stretches_every_image_to_one_square(side, tokens):
    config = XComposerConfig(variant="xcomposer2", img_size=side)
    assert transformed_size(1000, 7, config) == (side, side)
    assert number_of_image_tokens(side, side, config) == tokens
    assert load_pixels(Image.new("RGB", (30, 70)), config).shape == (3, side, side)


@pytest.mark.parametrize("size", [(50, 20), (20, 50), (31, 31)])
def test_the_pixels_have_the_size_that_was_worked_out(size, config):
    width, height = transformed_size(*size, config, 5)
    assert load_pixels(Image.new("RGB", size), config, 5).shape == (3, height, width)


def test_the_rest_is_filled_up_with_white_on_both_sides():
    config = XComposerConfig(variant="xcomposer2_4khd")
    pixels = load_pixels(Image.new("RGB", (200, 50)), config, 2)  # scaled to 672 x 168
    mean, std = (torch.tensor(values).view(3, 1) for values in (CLIP_MEAN, CLIP_STD))
    colours = pixels[:, :, 0] * std + mean
    black = (colours.abs() < 1e-5).all(0).nonzero().flatten().tolist()
    assert pixels.shape == (3, 336, 672)
    assert black == list(range(84, 252))
    assert torch.allclose(colours[:, [0, 83, 252, 335]], torch.ones(3, 4))


def test_a_tall_image_is_treated_as_a_wide_one_turned():
    config = XComposerConfig(variant="xcomposer2_4khd")
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 70, 3), dtype=np.uint8))
    tall = wide.transpose(Image.Transpose.TRANSPOSE)
    assert torch.equal(load_pixels(tall, config, 4), load_pixels(wide, config, 4).transpose(1, 2))


def test_an_image_of_which_nothing_would_be_left_is_named(config):
    with pytest.raises(DataError, match=r"data\.json item 3: an image of 3000 x 1 pixels is too elongated"):
        load_pixels(Image.new("RGB", (3000, 1)), config, 1, origin="data.json item 3")


def test_an_alpha_channel_and_a_palette_are_dropped(config):
    picture = Image.new("RGB", (40, 40), (10, 200, 30))
    expected = load_pixels(picture, config, 1)
    with_alpha = picture.convert("RGBA")
    with_alpha.putalpha(7)
    assert torch.equal(load_pixels(with_alpha, config, 1), expected)
    assert torch.equal(load_pixels(picture.convert("P", palette=Image.Palette.ADAPTIVE), config, 1), expected)
