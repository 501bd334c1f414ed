"""The real command on a tiny model and generated images."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def vlm_lora():
    """Run ``vlm-lora`` in a process of its own."""
    command = Path(sys.executable).with_name("vlm-lora")

    def run(*arguments, cwd=None, **environment):
        done = subprocess.run(
            [command, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "160", **environment},
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    from vlm_lora_monkey.tiny import write_tiny_folder

    return write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny-monkey")


@pytest.fixture
def write_data(tmp_path):
    """Write images and a JSONL file that names their colours."""

    def write(name="train.jsonl", rows=6):
        lines = []
        for index in range(rows):
            colour = list(COLOURS)[index % len(COLOURS)]
            image = tmp_path / f"{colour}-{index}.png"
            Image.new("RGB", (24 + index, 20), COLOURS[colour]).save(image)
            turns = [{"role": "user", "content": "<image>Which colour?"}, {"role": "assistant", "content": colour}]
            lines.append({"messages": turns, "images": [image.name]})
        file = tmp_path / name
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return file

    return write


@pytest.fixture
def data(write_data):
    return write_data()
