"""Somebody else's adapter, installed by pip, trains in Swift without a line of Swift code of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bitwise import different_tensors, logged

pytestmark = pytest.mark.slow

STRANGER = Path(__file__).parents[1] / "stranger"
WRITE = "import sys; from vlm_lora_sketch.modeling import write_tiny; write_tiny(sys.argv[1])"
RECIPE = {
    "preset": "lora",
    "training": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
    },
}


@pytest.fixture(scope="module")
def bench(make_bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stranger")
    source = shutil.copytree(STRANGER, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet")
    command = [sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", source]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert not any("swift" in file.read_text() for file in source.rglob("*.py"))

    def write(bench, model):
        subprocess.run([sys.executable, "-c", WRITE, str(model)], check=True, env=bench.environment)

    return make_bench(write, site=folder / "site")


def test_it_trains_as_in_the_trainer(bench):
    recipe = bench.recipe("recipe", **RECIPE)
    ours = bench.sft(recipe, bench.folder / "swift")
    theirs = bench.trainer(recipe, bench.folder / "trainer")
    assert different_tensors(ours / "checkpoint-3", theirs / "checkpoint-3") == {}
    assert logged(ours / "checkpoint-3") == logged(theirs / "checkpoint-3")
    assert logged(ours / "checkpoint-3")[0]["loss"] > 0
