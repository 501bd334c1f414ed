"""The tiny model that the jobs of this folder train, and processes that train it."""

from __future__ import annotations

import json

import pytest
from forking import ForkedRanks
from PIL import Image
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


@pytest.fixture(scope="session")
def write_rows(tmp_path_factory):
    """Write images and a data file; each row is a letter: ``i`` has an image, ``I`` two, ``t`` none."""

    def write(kinds):
        folder = tmp_path_factory.mktemp("rows")
        lines = []
        for index, kind in enumerate(kinds):
            names = [f"{index}-{number}.png" for number in range("tiI".index(kind))]
            for number, name in enumerate(names):
                Image.new("RGB", (20, 20), (30 * index % 256, 90 + 60 * number, 30)).save(folder / name)
            question = {"role": "user", "content": "<image>" * len(names) + "number?"}
            answer = {"role": "assistant", "content": str(index % 10) * (index % 4 + 1)}
            lines.append(json.dumps({"messages": [question, answer], "images": names}))
        (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
        return folder / "rows.jsonl"

    return write


@pytest.fixture(scope="session")
def forked():
    """Return what runs jobs of a framework on forked processes."""
    running = {}

    def get(framework):
        if framework not in running:
            running[framework] = ForkedRanks(framework)
        return running[framework]

    yield get
    for one in running.values():
        one.close()
