"""Somebody else's package: installed by pip, found, listed, selected by its model type, trained, reloaded.

It is installed into a folder of its own, which only the processes of these tests see. They are forks that import this
package and the stranger's anew; the first starts as a user's does.
"""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from warm import PROGRAM, warm

from vlm_lora_plugin.testing.contract import PROMISES

ROOT = Path(__file__).parents[2]
STRANGER = ROOT / "tests/stranger"
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20)}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stranger")
    source = shutil.copytree(STRANGER, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet")
    command = [sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", source]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder / "site"


@pytest.fixture(scope="module")
def run(site):
    def call(*arguments, **environment):
        variables = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        variables |= {"COLUMNS": "160", **environment}
        return warm("trainer").run(arguments, env=variables)

    return call


@pytest.fixture(scope="module")
def python(run):
    def call(code, *arguments):
        done = run(sys.executable, "-c", code, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return call


@pytest.fixture(scope="module")
def vlm_lora(run):
    return lambda *arguments, **environment: run(PROGRAM, *arguments, **environment)


@pytest.fixture(scope="module")
def model(python, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sketch") / "model"
    python("import sys; from vlm_lora_sketch.modeling import write_tiny; write_tiny(sys.argv[1])", folder)
    return folder


@pytest.fixture(scope="module")
def trained(vlm_lora, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    lines = []
    for index in range(8):
        colour = list(COLOURS)[index % 2]
        Image.new("RGB", (20, 20 + index), COLOURS[colour]).save(folder / f"{index}.png")
        turns = [{"role": "user", "content": "<image>Which colour?"}, {"role": "assistant", "content": colour}]
        lines.append(json.dumps({"messages": turns, "images": [f"{index}.png"]}))
    (folder / "train.jsonl").write_text("\n".join(lines))
    (folder / "val.jsonl").write_text("\n".join(lines[:2]))
    data = ("--data", folder / "train.jsonl", "--val-data", folder / "val.jsonl")
    settings = (
        "training.gradient_accumulation_steps=1",
        "training.per_device_train_batch_size=4",
        "optimizer.learning_rate.upper=2e-2",
        "optimizer.learning_rate.full=1e-2",
    )
    arguments = [word for setting in settings for word in ("--set", setting)]
    done = vlm_lora("train", model, *data, "-o", folder / "out", "--max-steps", 20, *arguments)
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_the_developers_environment_stays_clean(site):
    assert "vlm-lora-sketch" not in {distribution.name for distribution in importlib.metadata.distributions()}
    assert (site / "vlm_lora_sketch" / "adapter.py").is_file()


def test_it_is_listed_beside_the_own_families(vlm_lora, site):
    line = [str(PROGRAM), "adapters", "--json"]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(site)})
    assert vlm_lora("adapters", "--json").stdout == done.stdout
    entries = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert entries["monkey"]["error"] is None
    sketch = entries["sketch"]
    assert (sketch["distribution"], sketch["builtin"], sketch["error"]) == ("vlm-lora-sketch 0.1.0", False, None)
    assert (sketch["model_types"], sketch["presets"]) == (["sketch_vlm"], ["lora", "eyes"])


def test_its_presets_are_listed(vlm_lora):
    presets = json.loads(vlm_lora("presets", "sketch", "--json").stdout)["sketch"]["presets"]
    assert set(presets) == {"lora", "eyes"}


def test_it_is_selected_by_its_model_type(python, model):
    code = (
        "import sys; from vlm_lora_plugin import get_manager, load\n"
        "print(get_manager().family_of_model(load(sys.argv[1])[0]).title)"
    )
    assert python(code, model) == "Sketch"


def test_inspect_shows_its_rules_and_groups(vlm_lora, model):
    document = json.loads(vlm_lora("inspect", model, "--names", "--rules", "--json").stdout)
    assert document["family"] == "Sketch"
    groups = {entry["name"]: (entry["group"], entry["learning_rate"]) for entry in document["names"]}
    assert groups["model.layers.1.self_attn.q_proj.lora_A.weight"] == ("upper", 5e-3)
    assert groups["model.norm.weight"] == ("norms", 1e-3)
    assert not any(name.startswith("model.layers.0.self_attn") for name in groups)
    assert [rule["from"] for rule in document["rules"]] == ["recipe", "recipe", "adapter or a policy"]


def test_its_memory_is_planned_from_data_and_cannot_be_stated(vlm_lora, model, trained):
    done = vlm_lora("plan", model, "--data", trained.parent / "train.jsonl", "--hardware", "1x24", "--json")
    assert done.returncode == 0, done.stderr
    names = {part["name"] for part in json.loads(done.stdout)["memory"]["parts"]}
    assert {"frozen weights", "trainable weights", "optimizer states", "inputs", "reserve"} <= names
    stated = vlm_lora("plan", model)
    assert stated.returncode == 2
    assert "does not say how images stand in a row" in stated.stderr


def test_without_third_party_plugins_it_is_unknown(vlm_lora, model):
    done = vlm_lora("inspect", model, VLM_LORA_DISABLE_PLUGINS="1")
    assert done.returncode == 2
    assert "holds none of the known models" in done.stderr


def test_it_trains(trained):
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) == 20
    assert losses[-1] < 0.8 * losses[0]
    assert set(next(line for line in log if "loss" in line)["learning_rate"]) == {"aligner.full", "upper", "norms"}
    assert any("eval_exact_match" in line for line in log)


def test_its_adapter_is_reloaded(python, model, trained):
    code = (
        "import sys, torch; from vlm_lora_plugin import load, load_adapter\n"
        "model, _ = load(sys.argv[1])\n"
        "batch = {'input_ids': torch.tensor([[258] * 4 + [65, 66]]), 'pixel_values': torch.ones(1, 3, 16, 16)}\n"
        "before = model(**batch).logits\n"
        "tuned = load_adapter(model, sys.argv[2])\n"
        "print(float((tuned(**batch).logits - before).abs().max()) > 1e-3)"
    )
    assert python(code, model, trained / "adapter") == "True"


@pytest.fixture(scope="module")
def own_tests(run):
    """Its author's own tests, run as its author runs them; returns each outcome by promise."""

    def call(*arguments):
        options = ("-q", "-rA", "-p", "no:cacheprovider", "--rootdir", STRANGER, "-c", STRANGER / "pyproject.toml")
        done = run(sys.executable, "-m", "pytest", *options, *arguments, STRANGER / "tests")
        found = re.findall(r"^(PASSED|FAILED|SKIPPED|ERROR) \S*test_sketch_keeps\[(\S+)\]", done.stdout, re.MULTILINE)
        assert done.returncode == 0, done.stdout + done.stderr
        return {promise: outcome for outcome, promise in found}

    return call


def test_it_keeps_the_contract(own_tests):
    quick = {promise.name for promise in PROMISES if not promise.slow}
    assert own_tests("-m", "not slow") == dict.fromkeys(quick, "PASSED")


@pytest.mark.slow
def test_it_keeps_the_promises_that_start_other_processes(own_tests):
    slow = {promise.name for promise in PROMISES if promise.slow}
    assert own_tests("-m", "slow") == dict.fromkeys(slow, "PASSED")


def public_modules():
    page = (ROOT / "docs/reference/python.md").read_text()
    return {"vlm_lora_plugin", *re.findall(r"^\| `(vlm_lora_plugin[\w.]*)` \|", page, flags=re.MULTILINE)}


def imports_of(package):
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vlm_lora_plugin":
                yield from ((file.name, node.module, alias.name) for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((file.name, alias.name, "") for alias in node.names if "vlm_lora_plugin" in alias.name)


@pytest.mark.parametrize("package", [STRANGER, *sorted((ROOT / "adapters").glob("vlm_lora_*"))], ids=lambda p: p.name)
def test_an_adapter_imports_only_what_is_public(package):
    found = list(imports_of(package))
    assert found
    private = [each for each in found if each[1] not in public_modules() or each[2].startswith("_")]
    assert private == []
