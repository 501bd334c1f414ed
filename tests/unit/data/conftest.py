"""A processor with the tiny vocabulary: one id a byte, images of 3 positions and 8 pixels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vlm_lora_monkey.processing import MonkeyProcessor
from vlm_lora_monkey.records import parse_record
from vlm_lora_monkey.tokenization import load_tokenizer, write_tiny_vocabulary
from vlm_lora_plugin.contract import DataFormats, Family


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    return write_tiny_vocabulary(tmp_path_factory.mktemp("vocabulary")).parent


@pytest.fixture(scope="session")
def processor(vocabulary):
    return MonkeyProcessor(load_tokenizer(vocabulary), image_size=8, image_token_span=3)


@pytest.fixture(scope="session")
def family():
    """Only what readers ask a family for."""
    return Family(
        name="monkey",
        title="Monkey",
        model_types=("monkey",),
        presets={},
        default_preset="lora",
        recognises=lambda folder: False,
        architecture="toy_family:architecture",
        load_model="toy_family:load_model",
        load_processor="toy_family:load_processor",
        data_formats=DataFormats(parse_record=parse_record),
    )


@pytest.fixture
def picture(tmp_path):
    """Write an image of one colour and return its path."""

    def write(name: str = "cat.png", colour: tuple[int, int, int] = (200, 30, 60)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), colour).save(path)
        return path

    return write


@pytest.fixture
def data_file(tmp_path):
    """Write rows as JSONL and return the file."""

    def write(*rows: object, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        return path

    return write


def turns(*contents: str) -> list[dict[str, str]]:
    """Messages of user and assistant in alternation."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


@pytest.fixture(name="turns")
def _turns():
    return turns
