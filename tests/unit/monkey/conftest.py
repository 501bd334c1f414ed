"""A tiny Monkey, and prompts for it."""

from __future__ import annotations

import pytest
import torch

from vlm_lora_monkey.tiny import tiny_model


class Prompts:
    """Builds inputs for a model; ``"I"`` is an image, a number that many random tokens."""

    def __init__(self, config, seed=0):
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)

    def image_block(self):
        places = [self.config.image_pad_id] * self.config.image_token_span
        return [self.config.image_start_id, *places, self.config.image_end_id]

    def text(self, length):
        return torch.randint(0, 256, (length,), generator=self.generator).tolist()

    def row(self, *parts):
        return [token for part in parts for token in (self.image_block() if part == "I" else self.text(part))]

    def images(self, count):
        size = self.config.vision.image_size
        return torch.randn(count, 3, size, size, generator=self.generator)

    def batch(self, *rows, side="right"):
        """Pad rows of ids to one length."""
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.config.pad_token_id)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for index, row in enumerate(rows):
            where = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
            ids[index, where] = torch.tensor(row)
            mask[index, where] = 1
        return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def lively(model):
    """The tiny model with weights large enough that every part shows in the output."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "pos_embed" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
    return model


@pytest.fixture
def prompts(model):
    return Prompts(model.config)
