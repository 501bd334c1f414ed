"""A tiny OmniLMM, and batches for it."""

from __future__ import annotations

import pytest
import torch

from vlm_lora_omnilmm.tiny import tiny_model


class Prompts:
    """Builds inputs for a model; ``"I"`` is an image, a number that many random tokens."""

    def __init__(self, config, seed=0):
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)

    def row(self, *parts):
        patch, start, end = self.config.image_ids
        block = [start, *[patch] * self.config.num_query, end]
        return [
            token
            for part in parts
            for token in (block if part == "I" else torch.randint(3, 259, (part,), generator=self.generator).tolist())
        ]

    def images(self, count):
        size = self.config.image_size
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

    def training_batch(self):
        """Two images in the first row, none in the second; the last tokens of both are supervised."""
        batch = self.batch(self.row("I", 3, "I", 6), self.row(9))
        labels = batch["input_ids"].clone()
        labels[batch["attention_mask"] == 0] = -100
        labels[0, :-5] = -100
        labels[1, :6] = -100
        return {**batch, "labels": labels, "pixel_values": self.images(2)}


@pytest.fixture
def model():
    return tiny_model(initializer_range=0.1)


@pytest.fixture
def prompts(model):
    return Prompts(model.config)
