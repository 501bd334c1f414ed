"""Two processes with gloo: checkpoints are complete, and what does not learn is noticed without false alarms."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vlm_lora_monkey.tiny import write_tiny_folder
from vlm_lora_plugin import load, load_adapter
from vlm_lora_plugin.checkpoint.completion import why_incomplete
from vlm_lora_plugin.checkpoint.files import ADAPTER_WEIGHTS, BASE_WEIGHTS, COMPLETION
from vlm_lora_plugin.evaluation import generate_answers

SCRIPT = Path(__file__).with_name("two_ranks.py")
ROOT = SCRIPT.parents[2]


def examples():
    """Return the rows of ``two_ranks.py``."""
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.examples()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder that ``two_ranks.py`` has trained into, and what it printed."""
    folder = tmp_path_factory.mktemp("two-ranks")
    path = os.pathsep.join([str(ROOT), str(ROOT / "adapters"), *sys.path])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, str(SCRIPT), str(write_tiny_folder(folder / "model")), str(folder)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0, "the last of its runs must be stopped"
    return folder, done.stderr[-3000:]


@pytest.mark.parametrize("way", ["prepare", "callback"])
def test_a_sound_run_raises_no_alarm_and_its_checkpoint_is_complete(trained, way):
    folder, printed = trained
    assert (folder / way).is_dir(), printed
    assert [path.name for path in (folder / way).iterdir()] == ["checkpoint-12"], printed
    assert why_incomplete(folder / way / "checkpoint-12") is None
    files = json.loads((folder / way / "checkpoint-12" / COMPLETION).read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= files.keys(), "recorded before every rank was done"


def test_both_ways_train_the_same(trained):
    folder, _ = trained
    for name in (ADAPTER_WEIGHTS, BASE_WEIGHTS):
        left, right = (load_file(folder / way / "checkpoint-12" / name) for way in ("prepare", "callback"))
        assert left.keys() == right.keys()
        assert all((left[key] == right[key]).all() for key in left)


def test_the_ranks_share_the_answers_and_each_measures_what_one_process_would(trained):
    folder, printed = trained
    first, second = (json.loads((folder / f"answers-{rank}.json").read_text()) for rank in (0, 1))
    numbers = first["known"]
    assert (first["asked"], second["asked"]) == (numbers[::2], numbers[1::2]), printed
    base, processor = load(folder / "model")
    model = load_adapter(base, folder / "prepare" / "checkpoint-12")
    answers = generate_answers(model, processor, examples()[:5], max_new_tokens=6, batch_size=1)
    assert first["answers"] == second["answers"] == answers
    assert len(set(answers)) > 1, "answers that are all the same tell nothing of their order"


def test_a_cut_image_gradient_stops_the_run(trained):
    folder, printed = trained
    errors = [path.read_text() for path in folder.glob("error-*.txt")]
    assert errors, printed
    assert all("cut between the image features" in text for text in errors)
