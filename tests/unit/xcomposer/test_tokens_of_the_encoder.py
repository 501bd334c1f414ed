"""The closed formula against the tower that makes the tokens."""

from __future__ import annotations

import pytest
import torch

from vlm_lora_xcomposer.images import number_of_image_tokens
from vlm_lora_xcomposer.tiny import tiny_model

GRIDS = [(rows, columns) for rows in range(1, 56) for columns in range(1, 55 // rows + 1)]


@pytest.mark.parametrize("variant", ["xcomposer2_4khd", "xcomposer2_5"])
def test_every_grid_of_up_to_55_crops_gives_the_tokens_of_the_formula(variant):
    model = tiny_model(variant, vision={"image_size": 16, "patch_size": 4})
    side = model.config.image_size
    for rows, columns in GRIDS:
        pixels = torch.zeros(3, rows * side, columns * side)
        with torch.no_grad():
            tokens, lengths = model.encode_images([pixels])
        assert [len(tokens)] == lengths == [number_of_image_tokens(rows * side, columns * side, model.config)]


@pytest.mark.parametrize("side", [16, 32])
def test_a_square_of_version_2_gives_the_tokens_of_the_formula(side):
    model = tiny_model("xcomposer2", vision={"image_size": side, "patch_size": 4})
    with torch.no_grad():
        tokens, lengths = model.encode_images([torch.zeros(3, side, side)])
    assert [len(tokens)] == lengths == [number_of_image_tokens(side, side, model.config)]
