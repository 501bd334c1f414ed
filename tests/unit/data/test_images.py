from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_lora_plugin.data.images import open_image
from vlm_lora_plugin.data.pixels import CLIP_MEAN, CLIP_STD, load_pixels
from vlm_lora_plugin.errors import DataError


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode="RGB", size=(24, 16)):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def test_a_colour_becomes_its_normalised_value(picture):
    pixels = load_pixels(picture(colour=(255, 0, 51)), 8)
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    torch.testing.assert_close(pixels, expected[:, None, None].expand(3, 8, 8))


def test_path_bytes_and_open_image_give_the_same_pixels(tmp_path):
    image = noise()
    path = tmp_path / "noise.png"
    image.save(path)
    expected = load_pixels(path, 8)
    assert torch.equal(load_pixels(path.read_bytes(), 8), expected)
    assert torch.equal(load_pixels(image, 8), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK"])
def test_every_8_bit_mode_is_read_as_rgb(mode):
    source = noise(mode)
    assert torch.equal(load_pixels(source, 8), load_pixels(source.convert("RGB"), 8))


def test_a_palette_with_transparency_is_read_without_a_warning():
    palette = noise("P")
    data = encoded(palette, transparency=bytes(range(256)))
    assert torch.equal(load_pixels(data, 8), load_pixels(palette.convert("RGB"), 8))


def test_a_missing_image_names_path_and_origin(tmp_path):
    with pytest.raises(DataError, match=r"data\.jsonl:3: there is no image .*nowhere\.png"):
        load_pixels(tmp_path / "nowhere.png", 8, origin="data.jsonl:3")


@pytest.mark.parametrize(
    "content",
    [b"", b"no image at all", encoded(noise())[:20]],
    ids=["empty", "text", "header cut short"],
)
def test_what_is_no_image_names_path_and_origin(content, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.jsonl:3: .*broken\.png"):
        load_pixels(path, 8, origin="data.jsonl:3")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_a_truncated_image_is_an_error(kind, tmp_path):
    data = encoded(noise(size=(200, 200)), kind)
    path = tmp_path / "half"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"data\.jsonl:3: .*half cannot be read as an image"):
        load_pixels(path, 8, origin="data.jsonl:3")


def test_damaged_embedded_bytes_are_named_by_their_size():
    with pytest.raises(DataError, match=r"row: the embedded image \(3 bytes\)"):
        load_pixels(b"abc", 8, origin="row")


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(DataError, match="it is a folder"):
        load_pixels(tmp_path, 8)


def test_an_image_without_pixels_is_an_error():
    with pytest.raises(DataError, match=r"no pixels \(0 x 5\)"):
        load_pixels(Image.new("RGB", (0, 5)), 8)


def test_a_decompression_bomb_is_a_clear_error(picture, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20 * 10 // 2 - 1)
    with pytest.raises(DataError, match=r"row: .*cat\.png is too large to decode safely"):
        load_pixels(picture(), 8, origin="row")


def test_an_image_up_to_twice_pillows_limit_is_read_with_its_warning(picture, monkeypatch):
    path = picture()
    expected = load_pixels(path, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    with pytest.warns(Image.DecompressionBombWarning):
        assert torch.equal(load_pixels(path, 8), expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_are_refused_rather_than_clipped_to_white(dtype):
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        load_pixels(Image.fromarray(np.full((4, 4), 300, dtype)), 8)


def test_opening_reads_the_header_alone(tmp_path):
    data = encoded(noise(size=(200, 200)))
    path = tmp_path / "half.png"
    path.write_bytes(data[: len(data) // 2])
    with open_image(path) as image:
        assert image.size == (200, 200)
