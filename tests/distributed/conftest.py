"""The tiny model that the jobs of this folder train."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from vlm_lora_monkey.tiny import write_tiny_folder


@pytest.fixture(scope="session")
def tiny_monkey(tmp_path_factory):
    """A folder without the tower's LoRA, as of the base model that Monkey starts from; dropout is off."""
    folder = write_tiny_folder(tmp_path_factory.mktemp("tiny") / "model", visual={"lora_dropout": 0.0})
    weights = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if "_lora" not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    return folder
