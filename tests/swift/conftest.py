"""Real ``swift sft`` and the unmodified Trainer, each in a process of its own that cannot reach a network."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from PIL import Image

from vlm_lora_plugin.frameworks.swift.location import plugin_file

NO_NETWORK = """
import os, socket
def refuse(*arguments, **options):
    with open(os.environ["NETWORK_LOG"], "a") as file:
        print(*arguments, file=file)
    raise OSError("no network in this test")
connect = socket.socket.connect
def local_only(self, address):
    return connect(self, address) if self.family == socket.AF_UNIX else refuse(address)
socket.socket.connect = local_only
socket.getaddrinfo = refuse
"""
"""Python's ``sitecustomize``: every attempt to reach a server fails and is written down."""

TRAINER = Path(__file__).with_name("trainer_run.py")


@dataclass
class Bench:
    """A folder with a tiny model and data, and the two frameworks.

    Attributes:
        folder: Where everything lies.
        environment: Of the processes.
    """

    folder: Path
    environment: dict[str, str]

    def recipe(self, name: str, **document) -> Path:
        """Write a recipe."""
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(document))
        return file

    def swift(self, command, *words, **environment) -> subprocess.CompletedProcess:
        """Run one of Swift's commands."""
        return self._run("-m", "swift.cli.main", command, *words, **environment)

    def sft(self, recipe, output, *words, **environment) -> Path:
        """Train with Swift, and return the folder of checkpoints."""
        line = ("--model", self.folder / "model", "--dataset", self.folder / "train.jsonl", "--output_dir", output)
        added = ("--external_plugins", plugin_file(), "--tuner_type", "vlm_lora")
        document = json.dumps({"vlm_lora_recipe": str(recipe)})
        quiet = ("--add_version", "false", "--report_to", "none")
        done = self.swift("sft", *line, *words, *quiet, *added, "--model_kwargs", document, **environment)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return output

    def trainer(self, recipe, output, **options) -> Path:
        """Train with the unmodified Trainer, and return the folder of checkpoints."""
        done = self._run(TRAINER, json.dumps({"folder": str(self.folder), "recipe": str(recipe), **options}), output)
        assert done.returncode == 0, done.stderr[-4000:]
        return output

    def network(self) -> str:
        """Return every attempt to reach a server."""
        log = Path(self.environment["NETWORK_LOG"])
        return log.read_text() if log.is_file() else ""

    def _run(self, *words, **environment):
        variables = {**self.environment, **environment}
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=self.folder)


@pytest.fixture(scope="module")
def make_bench(tmp_path_factory):
    """Make a bench around a model folder that ``write_model`` writes."""

    def make(write_model, site=None) -> Bench:
        folder = tmp_path_factory.mktemp("bench")
        custom = folder / "site"
        custom.mkdir()
        (custom / "sitecustomize.py").write_text(NO_NETWORK)
        paths = [str(path) for path in (custom, site) if path]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "VLM_LORA"))}
        environment = {**kept, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment["NETWORK_LOG"] = str(folder / "network.log")
        bench = Bench(folder, environment)
        write_model(bench, folder / "model")
        write_data(folder)
        return bench

    return make


def write_data(folder: Path) -> None:
    """Write images, eleven rows of data of several lengths, and three to evaluate on."""
    colours = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
    lines = []
    for index in range(11):
        colour = list(colours)[index % 3]
        Image.new("RGB", (24 + index, 20), colours[colour]).save(folder / f"{index}.png")
        question = "<image>Which colour?" + " Please say." * (index % 4)
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": colour + " it is" * (index % 3)},
        ]
        row = {"messages": turns, "images": [f"{index}.png"]}
        if index == 4:
            row = {"messages": [{**turns[0], "content": "Which colour is grass?"}, turns[1]]}
        lines.append(json.dumps(row))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "val.jsonl").write_text("\n".join(lines[:3]) + "\n")
