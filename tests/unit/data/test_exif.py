"""What of an image is not seen is counted, and ``data.exif_transpose`` turns images wherever they are seen."""

from __future__ import annotations

import io
import json

import pytest
import torch
from PIL import Image, ImageOps

from vlm_lora_monkey.processing import MonkeyProcessor
from vlm_lora_monkey.tokenization import load_tokenizer
from vlm_lora_plugin.data.dataset import ConversationDataset
from vlm_lora_plugin.data.images import Peculiarities, image_size, open_image, orientation, peculiarities
from vlm_lora_plugin.data.pixels import load_pixels, read_rgb
from vlm_lora_plugin.data.statistics import DataSurvey
from vlm_lora_plugin.data.survey import survey
from vlm_lora_plugin.errors import RecipeError
from vlm_lora_plugin.recipe import DataSettings


def picture(size=(6, 4)):
    image = Image.new("RGB", size)
    image.putdata([(40 * x % 256, 60 * y % 256, 10 * x * y % 256) for y in range(size[1]) for x in range(size[0])])
    return image


def encoded(kind="PNG", orientation=None, image=None, **options):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    (image or picture()).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_an_image_is_turned_as_pillow_turns_it_and_its_size_is_known_before(kind, turn):
    content = encoded(kind, turn)
    with Image.open(io.BytesIO(content)) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    turned = read_rgb(content, exif_transpose=True)
    assert turned.tobytes() == expected.tobytes()
    assert turned.size == expected.size == image_size(content, exif_transpose=True)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_is_seen_as_stored_where_nothing_is_said(kind):
    plain, turned = encoded(kind), encoded(kind, 6)
    assert torch.equal(load_pixels(turned, 8), load_pixels(plain, 8))
    assert image_size(turned) == (6, 4)


def test_broken_exif_data_are_passed_over():
    content = encoded("JPEG", exif=b"Exif\x00\x00broken")
    assert read_rgb(content, exif_transpose=True).size == (6, 4)
    with open_image(encoded("PNG", 99)) as opened:
        assert orientation(opened) == 1


def gif(frames):
    return encoded(
        "GIF", save_all=True, append_images=[Image.new("RGB", (6, 4), c) for c in ("red", "blue")[: frames - 1]]
    )


def mpo():
    return encoded("MPO", save_all=True, append_images=[picture()])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(), Peculiarities()),
        (encoded("JPEG", 3), Peculiarities(turned=True)),
        (encoded("PNG", 8), Peculiarities(turned=True)),
        (encoded("TIFF", 8), Peculiarities()),
        (gif(1), Peculiarities()),
        (gif(3), Peculiarities(animated=True)),
        (mpo(), Peculiarities()),
        (encoded(image=picture().convert("RGBA")), Peculiarities(transparent=True)),
        (encoded(image=picture().convert("LA")), Peculiarities(transparent=True)),
        (encoded(image=picture().convert("P"), transparency=0), Peculiarities(transparent=True)),
    ],
    ids=["plain", "JPEG", "PNG", "TIFF", "one frame", "frames", "MPO", "RGBA", "LA", "palette"],
)
def test_what_is_not_seen_is_known(content, expected):
    with open_image(content) as opened:
        opened.load()
        assert peculiarities(opened) == expected


@pytest.fixture
def file(tmp_path):
    images = {"a.jpg": encoded("JPEG", 6), "b.gif": gif(3), "c.png": encoded(image=picture().convert("RGBA"))}
    rows = []
    for name, content in images.items():
        (tmp_path / name).write_bytes(content)
        turns = [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}]
        rows.append(json.dumps({"messages": turns, "images": [name]}))
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(rows))
    return path


@pytest.mark.parametrize("decode", [True, False])
def test_the_survey_counts_them_and_knows_the_size_that_is_seen(decode, file, processor, family):
    examples = ConversationDataset(file, processor, DataSettings(), family).examples
    for turned, width in ((False, 6), (True, 4)):
        settings = DataSettings(exif_transpose=turned)
        found = DataSurvey().add(survey(examples, processor, settings, decode=decode))
        assert (found.animated, found.turned, found.transparent) == (1, 1, 1)
        assert found.widths[0] == width


def test_a_row_is_encoded_with_its_image_turned(file, vocabulary, family):
    processor = MonkeyProcessor(load_tokenizer(vocabulary), image_size=8, image_token_span=3)
    with pytest.raises(RecipeError, match="exif_transpose is True, not False"):
        ConversationDataset(file, processor, DataSettings(exif_transpose=True), family)
    processor.exif_transpose = True
    data = ConversationDataset(file, processor, DataSettings(exif_transpose=True), family)
    expected = load_pixels(file.parent / "a.jpg", 8, exif_transpose=True)
    assert torch.equal(data[0]["pixel_values"][0], expected)
    assert torch.equal(processor.encode_prompt(data.examples[0])["pixel_values"][0], expected)
    assert not torch.equal(load_pixels(file.parent / "a.jpg", 8), expected)
    with pytest.raises(RecipeError, match="exif_transpose is False, not True"):
        ConversationDataset(file, processor, DataSettings(), family)
