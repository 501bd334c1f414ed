"""The real command on a tiny model and generated images."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
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


ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


@pytest.fixture(scope="session")
def command():
    """Run ``vlm-lora`` in a process of its own, as a user does."""
    program = Path(sys.executable).with_name("vlm-lora")

    def run(*arguments, **environment):
        variables = {**os.environ, **ENVIRONMENT, **environment}
        done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, env=variables)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def vlm_lora(monkeypatch):
    """Run the same application in this process, which saves the seconds that imports take."""
    from vlm_lora_plugin.cli.app import app

    def run(*arguments):
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            app(args=[*map(str, arguments)], prog_name="vlm-lora")
        return Outcome(end.value.code or 0, out.getvalue(), err.getvalue())

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
