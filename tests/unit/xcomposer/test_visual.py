"""From images to tokens: crops, the order of tokens, separators."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vlm_lora_plugin.errors import ModelError
from vlm_lora_xcomposer.grids import Grid
from vlm_lora_xcomposer.images import number_of_image_tokens
from vlm_lora_xcomposer.tiny import tiny_config, tiny_model
from vlm_lora_xcomposer.visual import in_token_order, merge_patches, views_of


def test_the_global_view_comes_first_and_crops_row_by_row():
    config = tiny_config()
    image = torch.randn(3, 64, 96)
    views = views_of([image], config)

    assert views.shape == (7, 3, 32, 32)
    torch.testing.assert_close(views[0], F.interpolate(image[None], size=(32, 32), mode="bicubic")[0])
    assert torch.equal(views[1], image[:, :32, :32])
    assert torch.equal(views[3], image[:, :32, 64:])
    assert torch.equal(views[4], image[:, 32:, :32])


def test_version_2_sees_the_image_itself():
    image = torch.randn(3, 32, 32)
    assert torch.equal(views_of([image], tiny_config("xcomposer2")), image[None])


def test_four_neighbouring_patches_become_one_token():
    patches = torch.arange(16.0).view(1, 16, 1)

    merged = merge_patches(patches, 2)
    assert merged.shape == (1, 2, 2, 4)
    assert merged[0, 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_tokens_are_the_global_view_a_separator_and_the_picture_with_row_ends():
    # One channel that counts: the global view is 0..3, the crops side by side are 10..13 and 20..23.
    features = torch.tensor([[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]).float().view(3, 2, 2, 1)

    tokens = in_token_order(features, [Grid(1, 2)], torch.tensor([-1.0]), torch.tensor([-2.0]))
    assert tokens[0].flatten().tolist() == [0, 1, -1, 2, 3, -1, -2, 10, 11, 20, 21, -1, 12, 13, 22, 23, -1]


@pytest.mark.parametrize(
    ("variant", "grids"),
    [
        ("xcomposer2_4khd", [(1, 1), (1, 3), (4, 1), (3, 2)]),
        ("xcomposer2_5", [(2, 2), (1, 2)]),
        ("xcomposer2", [(1, 1), (1, 1)]),
    ],
)
def test_the_encoder_gives_as_many_tokens_as_the_formula_says(variant, grids):
    model = tiny_model(variant)
    images = [torch.randn(3, 32 * rows, 32 * columns) for rows, columns in grids]

    tokens, lengths = model.encode_images(images)
    assert tokens.shape == (sum(lengths), 64)
    assert lengths == [number_of_image_tokens(*image.shape[1:], model.config) for image in images]


def test_an_images_tokens_do_not_depend_on_its_neighbours(lively):
    model = lively()
    images = [torch.randn(3, 32, 64), torch.randn(3, 96, 32)]

    together = model.encode_images(images)[0]
    torch.testing.assert_close(together, torch.cat([model.encode_images([image])[0] for image in images]))


@pytest.mark.parametrize(
    ("variant", "shape"),
    [
        ("xcomposer2_4khd", (3, 33, 32)),
        ("xcomposer2_4khd", (1, 32, 32)),
        ("xcomposer2_4khd", (3, 0, 32)),
        ("xcomposer2", (3, 32, 64)),
    ],
)
def test_images_of_another_size_are_refused(variant, shape):
    with pytest.raises(ModelError, match="shape"):
        tiny_model(variant).encode_images([torch.zeros(shape)])


def test_the_norm_behind_the_last_layer_is_not_applied(lively):
    model = lively(post_layernorm=True)
    image = torch.randn(3, 32, 32)
    before = model.encode_images([image])[0]
    model.vit.vision_tower.vision_model.post_layernorm.weight.data.mul_(3)

    assert torch.equal(model.encode_images([image])[0], before)
