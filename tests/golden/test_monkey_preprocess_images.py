"""`preprocess_images`: three pictures through upstream's ``visual.encode``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from vlm_lora_plugin.data.pixels import load_pixels

FOLDER = Path(__file__).parent / "monkey"
DETAILS = json.loads((FOLDER / "preprocess_images.json").read_text("utf-8"))
STRIDED = load_file(FOLDER / "preprocess_images.safetensors")
TOLERANCE = {"rtol": 0, "atol": 1e-6}  # the bar is 1e-3; where measured, the values are equal


def views(pixels):
    """The four windows and the global view, named as the file names them."""
    windows = pixels.unfold(1, 448, 448).unfold(2, 448, 448)
    return {
        "pixels_896": pixels,
        "top_left": windows[:, 0, 0],
        "top_right": windows[:, 0, 1],
        "bottom_left": windows[:, 1, 0],
        "bottom_right": windows[:, 1, 1],
        "global448": functional.interpolate(pixels[None], size=(448, 448), mode="bicubic")[0],
    }


@pytest.fixture(scope="module", params=DETAILS)
def picture(request):
    return request.param, load_pixels(FOLDER / DETAILS[request.param]["file"], 896)


def test_pixels_and_global_view_equal_upstreams(picture):
    name, pixels = picture
    torch.testing.assert_close(pixels[:, ::32, ::32], STRIDED[f"{name}.pixels_every32"], **TOLERANCE)
    overview = views(pixels)["global448"][:, ::32, ::32]
    torch.testing.assert_close(overview, STRIDED[f"{name}.global448_every32"], **TOLERANCE)


@pytest.mark.parametrize("view", ["pixels_896", "top_left", "top_right", "bottom_left", "bottom_right", "global448"])
def test_every_view_has_upstreams_statistics(picture, view):
    name, pixels = picture
    ours, expected = views(pixels)[view], DETAILS[name]["views"][view]
    flat = ours.to(torch.float64).flatten()
    assert list(ours.shape) == expected["shape"]
    assert flat.mean().item() == pytest.approx(expected["mean"], abs=1e-6)
    assert flat.std(correction=1).item() == pytest.approx(expected["std"], rel=1e-6)
    assert flat.norm().item() == pytest.approx(expected["l2"], rel=1e-6)
    cosines = torch.arange(flat.numel(), dtype=torch.float64).cos()
    assert flat.dot(cosines).item() == pytest.approx(expected["dot_cos"], abs=1e-3)
