"""The numbers of the page on 4KHD are those that the code gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.images import number_of_image_tokens, transformed_size

PAGE = (Path(__file__).parents[2] / "docs/how-to/4khd-on-one-32gb-card.md").read_text("utf-8")
CONFIG = XComposerConfig(variant="xcomposer2_4khd")
SHAPES = [(1000, 1000), (1600, 900), (210, 297)]

GIB = 2**30
LORA_PARAMETERS = 2_359_296  # for each rank, over the five layers that the preset adapts
TEXT = 200


def tokens(size, hd_num):
    width, height = transformed_size(*size, CONFIG, hd_num)
    return number_of_image_tokens(height, width, CONFIG)


def rows_of(header):
    """The rows of numbers below a table's header."""
    lines = PAGE[PAGE.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[float(cell.split()[0].replace(",", "")) for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("row", rows_of("| `hd_num` | square"), ids=lambda row: f"hd_num {row[0]:.0f}")
def test_the_tokens_of_each_shape(row):
    hd_num, *stated = map(int, row)
    ratios = [(across, down) for across in range(1, 100) for down in range(1, 100)]
    most = max(tokens(ratio, hd_num) for ratio in ratios)
    assert stated == [*(tokens(shape, hd_num) for shape in SHAPES), most]


@pytest.mark.parametrize("row", rows_of("| `hd_num` | tokens |"), ids=lambda row: f"hd_num {row[0]:.0f}")
def test_the_predicted_memory(row):
    hd_num, length, *stated = row
    assert length == tokens((1, 99), int(hd_num)) + TEXT
    for rank, gib in zip((4, 8, 16, 64), stated, strict=True):
        lora = 16 * LORA_PARAMETERS * rank / GIB
        peak = max(0.53e6 * length, 18 * CONFIG.vocab_size * 256) / GIB
        assert round(16.01 + lora + 262_144 * length / GIB + peak + 1.35, 1) == gib


def test_the_default_hd_num():
    assert f"| {CONFIG.hd_num} (default) |" in PAGE
    assert re.search(r"700 x 400 pixels at\s+`hd_num` 55 become 3024 x 2016", PAGE)
    assert transformed_size(700, 400, CONFIG, 55) == (3024, 2016)
