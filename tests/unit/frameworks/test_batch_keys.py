"""Whatever keys a model's images have in a batch, what watches a run asks the architecture for them."""

import json
from dataclasses import replace

import pytest
import torch
import toy_family
from toy_family import ToyDataset, ToyForCausalLM, toy_model
from transformers import Trainer, default_data_collator

from vlm_lora_plugin import prepare, training_arguments
from vlm_lora_plugin.diagnostics.learning import LearningProbe
from vlm_lora_plugin.frameworks.recorder import Recorder, record_file
from vlm_lora_plugin.frameworks.trainer.resource_monitor import ResourceMonitor

KEYS = ("patches", "grids")


class Patched(ToyForCausalLM):
    """Takes its pixels by another name, and beside them how many patches each image has."""

    def forward(self, input_ids=None, patches=None, grids=None, **kwargs):
        return super().forward(input_ids=input_ids, pixel_values=patches, **kwargs)


class Patches(ToyDataset):
    """Says of each row that it holds five images."""

    def __init__(self, grid):
        super().__init__()
        self.grid = grid

    def __getitem__(self, index):
        row = super().__getitem__(index)
        return {"patches": row.pop("pixel_values"), **row, "grids": torch.tensor([self.grid] * 5)}


@pytest.fixture
def prepared(toy, monkeypatch):
    counted = replace(toy_family.ARCHITECTURE, image_keys=KEYS, image_counter=lambda batch: batch["grids"].numel())
    monkeypatch.setattr(toy_family, "ARCHITECTURE", counted)
    base = toy_model()
    base.__class__ = Patched
    return prepare(base, {"preset": "lora", "training": {"max_steps": 1, "gradient_accumulation_steps": 1}})


def train(model, folder, dataset):
    """Train a step; return the resources' summary and the batch as it was recorded."""
    monitor, records = ResourceMonitor(), folder / "records"
    Trainer(
        model=model,
        args=training_arguments(model, folder, disable_tqdm=True, per_device_train_batch_size=2),
        train_dataset=dataset,
        data_collator=default_data_collator,
        callbacks=[monitor, Recorder(records)],
    ).train()
    lines = map(json.loads, record_file(records, 0).read_text().splitlines())
    return monitor.summary, next(line for line in lines if line["event"] == "batch")


def test_images_are_counted_and_not_patches(prepared, tmp_path):
    assert train(prepared, tmp_path, Patches(4))[0].images == 2 * 5


def test_the_digests_of_a_batch_cover_every_key_of_its_images(prepared, tmp_path):
    (_, one), (_, other) = (train(prepared, tmp_path / str(grid), Patches(grid)) for grid in (4, 5))
    assert one["ids"] == other["ids"]
    assert one["pixels"] != other["pixels"]


def test_the_learning_probe_sees_images_by_whatever_name(prepared):
    probe = LearningProbe(prepared, prepared)
    batch = default_data_collator([Patches(4)[0], Patches(4)[1]])
    prepared.train()
    prepared(**{key: value for key, value in batch.items() if key not in KEYS}, grids=torch.zeros(0))
    assert not probe._has_image
    prepared(**batch)
    assert probe._has_image
