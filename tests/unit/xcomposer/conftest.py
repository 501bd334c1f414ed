"""Processors with the small vocabulary, one id a character, and crops of 32 pixels that give 2 x 2 tokens."""

from __future__ import annotations

import pytest
from PIL import Image

from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.processing import XComposerProcessor
from vlm_lora_xcomposer.tokenization import load_vocabulary, write_tiny_vocabulary

VISION = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def vocabulary_folder(tmp_path_factory):
    return write_tiny_vocabulary(tmp_path_factory.mktemp("xcomposer-vocabulary")).parent


@pytest.fixture(scope="session")
def vocabulary(vocabulary_folder):
    return load_vocabulary(vocabulary_folder)


@pytest.fixture(scope="session")
def processor(vocabulary):
    """Make a processor: ``processor("xcomposer2_5", hd_num=4)``."""

    def make(variant="xcomposer2_4khd", **options):
        config = XComposerConfig(vocab_size=501, variant=variant, vision=VISION)
        return XComposerProcessor(vocabulary, config, **options)

    return make


@pytest.fixture
def picture(tmp_path):
    """Write an image of one colour and return its path."""

    def write(name="a.png", size=(64, 32)):
        path = tmp_path / name
        Image.new("RGB", size, (200, 30, 60)).save(path)
        return path

    return write
