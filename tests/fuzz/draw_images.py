"""Image files as cameras, editors and broken downloads leave them, and what opening one makes of it."""

from __future__ import annotations

import io
import os
import random
import struct
from pathlib import Path

from evil import damaged
from fuzzing import Kind
from PIL import Image, features

from vlm_lora_plugin.data.images import image_size, open_image

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n"
OTHERS = {
    "EPS": EPS,
    "EPS with a binary head": b"\xc5\xd0\xd3\xc6" + struct.pack("<6IH", 30, len(EPS), 0, 0, 0, 0, 0xFFFF) + EPS,
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "PDF": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n",
    "an HTML page": b"<!doctype html><title>404</title>",
    "nothing": b"",
    "ICO": b"\x00\x00\x01\x00\x01\x00\x10\x10\x00\x00\x01\x00\x20\x00h\x04\x00\x00\x16\x00\x00\x00",
    "a large PNG": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
    + struct.pack(">II", 2**31 - 1, 2**31 - 1)
    + b"\x08\x02\0\0\0",
}


def _encoded(source: random.Random) -> tuple[str, bytes]:
    picture = Image.effect_noise((source.choice((1, 16, 33)), source.choice((1, 16, 40))), 40)
    kind = source.choice([name for name in FORMATS if name not in ("WEBP", "JPEG2000") or _writes(name)])
    mode = source.choice(("RGB", "L", "RGBA", "P", "1", "CMYK", "LA", "I;16", "F"))
    stream = io.BytesIO()
    try:
        picture.convert(mode).save(stream, kind)
    except (OSError, ValueError, KeyError):  # not every format takes every mode
        mode, stream = "RGB", io.BytesIO()
        picture.convert(mode).save(stream, kind)
    return f"{kind} {mode}", stream.getvalue()


def _writes(kind: str) -> bool:
    return bool(features.check({"WEBP": "webp", "JPEG2000": "jpg_2000"}[kind]))


def draw(source: random.Random) -> tuple[str, bytes]:
    """Draw a file's bytes."""
    if source.random() < 0.25:
        name = source.choice(list(OTHERS))
        return name, OTHERS[name]
    name, content = _encoded(source)
    if source.random() < 0.2:
        return name, content
    head = source.choice((24, 64, len(content)))
    way, broken = damaged(source, content[:head])
    return way, broken + content[head:]


class Bench:
    """A place for image files, and programs in PATH that tell when one of them is started."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "picture.png"
        self.told = folder / "started"
        for name in ("gs", "gswin64c", "rsvg-convert"):
            program = folder / name
            program.write_text(f"#!/bin/sh\necho started > {self.told}\n")
            program.chmod(0o755)
        self.path = f"{folder}{os.pathsep}{os.environ['PATH']}"

    def kind(self) -> Kind[bytes]:
        """Images, their headers read and their pixels decoded."""

        def use(raw: bytes) -> None:
            self.file.write_bytes(raw)
            try:
                size = image_size(self.file, max_pixels=50_000_000)
                with open_image(self.file, max_pixels=50_000_000) as opened:
                    assert opened.convert("RGB").size == size
            finally:
                assert not self.told.exists(), "opening an image started a program"

        return Kind("image", draw, use)
