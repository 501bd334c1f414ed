"""Processors with the small vocabulary, one id a character, and crops of 32 pixels that give 2 x 2 tokens."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.images import number_of_image_tokens
from vlm_lora_xcomposer.processing import XComposerProcessor
from vlm_lora_xcomposer.tiny import tiny_model
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


class Batches:
    """Builds inputs for a model; ``(rows, columns)`` is an image of so many crops, a number that many random tokens."""

    def __init__(self, config, seed=0):
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)

    def image(self, rows=1, columns=1):
        side = self.config.image_size
        return torch.randn(3, rows * side, columns * side, generator=self.generator)

    def batch(self, *rows, side="right"):
        """Pad rows to one length; images stand in ``pixel_values`` in order."""
        images, lines = [], []
        for row in rows:
            line = []
            for part in row:
                if isinstance(part, int):
                    line += torch.randint(3, 250, (part,), generator=self.generator).tolist()
                else:
                    images.append(self.image(*part))
                    tokens = number_of_image_tokens(*images[-1].shape[1:], self.config)
                    line += [self.config.image_token_id] * tokens
            lines.append(line)
        length = max(map(len, lines))
        ids = torch.full((len(lines), length), self.config.pad_token_id)
        mask = torch.zeros(len(lines), length, dtype=torch.long)
        for index, line in enumerate(lines):
            where = slice(0, len(line)) if side == "right" else slice(length - len(line), length)
            ids[index, where], mask[index, where] = torch.tensor(line), 1
        batch = {"input_ids": ids, "attention_mask": mask}
        return {**batch, "pixel_values": images} if images else batch

    def labelled(self, *rows):
        """The same, with every text token but the first three of a row supervised."""
        batch = self.batch(*rows)
        labels = batch["input_ids"].masked_fill(batch["input_ids"] == self.config.image_token_id, -100)
        labels = labels.masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, :3] = -100
        return {**batch, "labels": labels}


@pytest.fixture
def batches():
    """Make a builder of inputs for a model: ``batches(model)``."""
    return lambda model: Batches(model.config)


@pytest.fixture
def lively():
    """Make a tiny model whose weights are large enough that every part shows in the output."""

    def make(variant="xcomposer2_4khd", **overrides):
        model = tiny_model(variant, **overrides)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    std = 1.0 if "GN" in name or "embeddings" in name else parameter[0].numel() ** -0.5
                    parameter.normal_(std=std, generator=generator)
        return model

    return make
