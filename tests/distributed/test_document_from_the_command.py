"""The file that ``vlm-lora deepspeed`` prints for three devices trains every family on three processes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from forking import history, succeeded
from launching import largest_difference

FAMILIES = ("monkey", "omnilmm", "xcomposer")
COMMAND = Path(sys.executable).with_name("vlm-lora")
pytestmark = pytest.mark.slow


def recipe(family, rows):
    peft = {} if family == "monkey" else {"lora": {"lora_dropout": 0.0}}  # Monkey's preset trains LoRA of its own
    return {
        "preset": "lora",
        **peft,
        # AdamW turns the rounding of a gradient near zero into a share of a whole step.
        "optimizer": {"learning_rate": 3e-4, "warmup_ratio": 0.0},
        "training": {
            "max_steps": 3,
            "save_steps": 3,
            "logging_steps": 1,
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": 1,
            "dataloader_num_workers": 0,
        },
    }


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family, tiny_monkey, tmp_path_factory):
    if family == "monkey":
        return tiny_monkey
    tiny = importlib.import_module(f"vlm_lora_{family}.tiny")
    return tiny.write_tiny_folder(tmp_path_factory.mktemp(family) / "model")


@pytest.fixture(scope="module")
def document(family):
    command = [COMMAND, "deepspeed", "--family", family, "--gpus", "3", "--gpu-memory", "24", "--host-memory", "128"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def job(model, write_rows):
    rows = write_rows("iitiititttti")
    return {"model": model, "data": rows}


@pytest.fixture(scope="module")
def alone(forked, family, job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    succeeded(forked("trainer").run(**job, output=folder, recipe=recipe(family, 3), processes=1))
    return folder / "checkpoint-3"


@pytest.mark.parametrize("framework", ["trainer", "swift"])
def test_three_processes_train_what_one_does(forked, family, job, document, alone, tmp_path, framework):
    assert document["zero_optimization"]["stage"] == 3

    succeeded(forked(framework).run(**job, output=tmp_path, recipe=recipe(family, 1), processes=3, deepspeed=document))

    found, expected = history(tmp_path / "checkpoint-3"), history(alone)
    assert found.keys() == expected.keys()
    assert max(abs(found[step][0] - expected[step][0]) for step in expected) < 1e-5
    assert largest_difference(tmp_path / "checkpoint-3", alone) < 1e-5


def test_one_process_in_parts_trains_rows_without_an_image(forked, family, job, document, alone, tmp_path):
    """Between passes a parameter is empty there: zero times its sum would give it the gradient of nothing."""
    succeeded(forked("trainer").run(**job, output=tmp_path, recipe=recipe(family, 3), processes=1, deepspeed=document))

    assert largest_difference(tmp_path / "checkpoint-3", alone) < 1e-5
