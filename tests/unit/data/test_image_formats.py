"""Images of a fixed list of raster formats, from regular files; nothing is started, nothing waits."""

from __future__ import annotations

import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlm_lora_plugin.data.image_formats import raster_formats
from vlm_lora_plugin.data.images import image_size, open_image
from vlm_lora_plugin.data.pixels import read_rgb
from vlm_lora_plugin.errors import DataError, VlmLoraError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 60\n%%EndComments\n(x) run\n%%EOF\n"


def encoded(kind, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.new(mode, (12, 8), 90 if mode == "L" else "red").save(buffer, kind, **options)
    return buffer.getvalue()


READ = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"]
NOT_READ = ["EPS", "ICO", "ICNS", "PCX", "TGA", "DDS", "SGI", "SPIDER", "MSP", "XBM", "PDF"]


@pytest.mark.parametrize("kind", READ)
def test_formats_on_the_list_are_read_under_any_name(kind, tmp_path):
    if kind not in raster_formats():
        assert kind == "AVIF"  # the one that an older Pillow lacks
        return
    (tmp_path / "a.txt").write_bytes(encoded(kind))
    assert read_rgb(tmp_path / "a.txt").size == (12, 8)


def test_a_jpeg_with_further_pictures_is_read():
    buffer = io.BytesIO()
    picture = Image.new("RGB", (12, 8), "red")
    picture.save(buffer, "MPO", save_all=True, append_images=[picture])
    assert read_rgb(buffer.getvalue()).size == (12, 8)


@pytest.mark.parametrize("kind", NOT_READ)
def test_other_formats_are_refused_in_a_sentence(kind, tmp_path):
    mode = {"MSP": "1", "XBM": "1", "SPIDER": "F"}.get(kind, "RGB")
    buffer = io.BytesIO()
    Image.new(mode, (16, 16)).save(buffer, kind)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    for image in (tmp_path / "a.png", buffer.getvalue()):
        with pytest.raises(DataError, match=r"^row 1: .* is (a|in no image format|empty)") as caught:
            read_rgb(image, origin="row 1")
        assert "JPEG 2000" in caught.value.fix


@pytest.mark.parametrize("name", ["a.eps", "a.png"])
def test_ghostscript_is_never_started(name, tmp_path, monkeypatch):
    for program in ("gs", "gswin32c", "gswin64c"):
        (tmp_path / program).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / name).write_bytes(EPS)
    for image in (tmp_path / name, EPS):
        with pytest.raises(DataError, match=r"is a PostScript drawing \(EPS\)"):
            read_rgb(image)
    with Image.open(tmp_path / name) as opened, pytest.raises(DataError, match="in the format EPS, which is not read"):
        read_rgb(opened)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"%PDF-1.7", "is a PDF document"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "is a HEIC photograph"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x">', "is an SVG drawing"),
        (b"", "is empty, broken"),
    ],
)
def test_what_is_often_taken_for_an_image_is_recognised(head, words, tmp_path):
    (tmp_path / "a.png").write_bytes(head)
    with pytest.raises(DataError, match=words):
        read_rgb(tmp_path / "a.png")


def test_nothing_waits_for_a_pipe_or_reads_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png cannot be read as an image: it is a pipe"):
        image_size(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="it is a device"):
        image_size(tmp_path / "zero.png")


@pytest.mark.parametrize(
    ("wrong", "right", "hint"),
    [
        ("in\\a.png", "in/a.png", "Windows"),
        ("a%20b.png", "a b.png", "%20"),
        ("cafe\u0301.png", "caf\u00e9.png", "encoded in another way, NFC"),
        ("caf\u00e9.png", "cafe\u0301.png", "encoded in another way, NFD"),
        ("A.PNG", "a.png", "capital"),
        ("a.png ", "a.png", "white space"),
    ],
)
def test_a_missing_image_of_another_spelling_is_found_but_not_opened(wrong, right, hint, tmp_path):
    (tmp_path / right).parent.mkdir(exist_ok=True)
    (tmp_path / right).write_bytes(encoded("PNG"))
    with pytest.raises(DataError, match="there is no image") as caught:
        image_size(tmp_path / wrong)
    assert hint in caught.value.fix
    assert str(tmp_path / right) in caught.value.fix


SAMPLES = [encoded(kind) for kind in READ if kind in raster_formats()] + [encoded("PNG", "L"), EPS]


@given(st.data())
def test_a_damaged_header_is_read_or_refused_in_words(data):
    damaged = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, min(len(damaged), 200) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))
    answer: object = "read"
    try:
        with open_image(bytes(damaged[:cut]), origin="row 1", max_pixels=1_000_000) as opened:
            opened.convert("RGB")
    except VlmLoraError as error:  # any other exception is a fault
        answer = error.what
    assert answer == "read" or str(answer).startswith("row 1: ")
