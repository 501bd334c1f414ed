"""The tutorial's code as its reader writes it: installed, tested by the kit, trained in both frameworks."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_lora_plugin.parity.demo import write_rows
from vlm_lora_plugin.testing.contract import PROMISES

PAGE = Path(__file__).parents[2] / "docs/tutorial/first-family.md"
FILE = re.compile(r'^```\w+ title="(?P<name>[^"]+)"\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL)
MOST_LINES = 120


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first-family") / "vlm-lora-llava"
    for found in FILE.finditer(PAGE.read_text("utf-8")):
        file = folder / found["name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(found["code"], "utf-8")
    (folder / "vlm_lora_llava/__init__.py").touch()
    return folder


@pytest.fixture(scope="module")
def run(package):
    site = package.parent / "site"
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet")
    command = [sys.executable, "-m", "pip", "install", *options, "--target", site, package]
    subprocess.run(command, check=True, capture_output=True, text=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def call(*arguments):
        line = [sys.executable, *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=package.parent)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        return done.stdout

    return call


@pytest.fixture(scope="module")
def model(run, package):
    folder = package.parent / "tiny-llava"
    run("-c", f"from vlm_lora_llava.tiny import write_tiny_model; write_tiny_model({str(folder)!r})")
    return folder


def outcomes(run, package, mark):
    options = ("-q", "-rA", "-p", "no:cacheprovider", "--rootdir", package, "-m", mark)
    printed = run("-m", "pytest", *options, package / "tests")
    return dict(re.findall(r"^PASSED \S*test_llava_keeps\[(\S+)\](.*)", printed, re.MULTILINE))


def test_it_shows_every_file_of_the_package(package):
    shown = re.search(r"^```\nvlm-lora-llava/\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    names = set(re.findall(r"[\w.]+\.(?:py|toml)", shown))
    assert names == {file.name for file in package.rglob("*.*") if file.is_file()}


def test_it_is_short(package):
    lines = [line for file in package.rglob("*.py") for line in file.read_text().splitlines() if line.strip()]
    assert len(lines) <= MOST_LINES


def test_it_keeps_the_contract(run, package):
    assert outcomes(run, package, "not slow").keys() == {promise.name for promise in PROMISES if not promise.slow}


@pytest.mark.slow
def test_it_trains(run, package, model):
    data, output = write_rows(package.parent / "data", "train", 0, 8), package.parent / "out"
    settings = ("training.gradient_accumulation_steps=1", "training.per_device_train_batch_size=4")
    settings += ("optimizer.learning_rate.default=1e-2", "optimizer.warmup_ratio=0")
    words = [word for setting in settings for word in ("--set", setting)]
    run("-m", "vlm_lora_plugin.cli", "train", model, "--data", data, "-o", output, "--max-steps", 12, *words)
    losses = [
        line["loss"] for line in map(json.loads, (output / "log.jsonl").read_text().splitlines()) if "loss" in line
    ]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_both_frameworks_train_it_alike_and_deepspeed_reads_its_documents(run, package):
    assert outcomes(run, package, "slow").keys() == {promise.name for promise in PROMISES if promise.slow}
