"""Two processes with gloo: checkpoints are complete, and what does not learn is noticed without false alarms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from families import FAMILIES
from launching import fork, trained
from rows import examples
from two_ranks import ROWS

from vlm_lora_plugin import load, load_adapter
from vlm_lora_plugin.answering.evaluation import generate_answers
from vlm_lora_plugin.checkpoint.completion import why_incomplete
from vlm_lora_plugin.checkpoint.files import COMPLETION

SCRIPT = Path(__file__).with_name("two_ranks.py")
EACH_FAMILY = [pytest.param(name, marks=() if name == "monkey" else pytest.mark.slow) for name in FAMILIES]


@pytest.fixture(scope="module", params=EACH_FAMILY)
def runs(request, tiny_model, tmp_path_factory):
    """The folder that ``two_ranks.py`` has trained into, with the model in it, and what it printed."""
    folder = tmp_path_factory.mktemp("two-ranks")
    model = tiny_model(request.param)
    done = fork(folder, SCRIPT, [str(model), str(folder)])
    (folder / "model").symlink_to(model)
    assert done.status != 0, "the last of its runs must be stopped"
    return folder, done.printed


@pytest.mark.parametrize("way", ["prepare", "callback"])
def test_a_sound_run_raises_no_alarm_and_its_checkpoint_is_complete(runs, way):
    folder, printed = runs
    assert (folder / way).is_dir(), printed
    assert [path.name for path in (folder / way).iterdir()] == ["checkpoint-12"], printed
    assert why_incomplete(folder / way / "checkpoint-12") is None
    files = json.loads((folder / way / "checkpoint-12" / COMPLETION).read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= files.keys(), "recorded before every rank was done"


def test_both_ways_train_the_same(runs):
    folder, _ = runs
    left, right = (trained(folder / way / "checkpoint-12") for way in ("prepare", "callback"))
    assert left.keys() == right.keys()
    assert left
    assert all((left[key] == right[key]).all() for key in left)


def test_the_ranks_share_the_answers_and_each_measures_what_one_process_would(runs):
    folder, printed = runs
    first, second = (json.loads((folder / f"answers-{rank}.json").read_text()) for rank in (0, 1))
    numbers = first["known"]
    assert (first["asked"], second["asked"]) == (numbers[::2], numbers[1::2]), printed
    base, processor = load(folder / "model")
    model = load_adapter(base, folder / "prepare" / "checkpoint-12")
    answers = generate_answers(model, processor, examples(ROWS)[:5], max_new_tokens=6, batch_size=1)
    assert first["answers"] == second["answers"] == answers
    assert len(set(answers)) > 1, "answers that are all the same tell nothing of their order"


def test_a_cut_image_gradient_stops_the_run(runs):
    folder, printed = runs
    errors = [path.read_text() for path in folder.glob("error-*.txt")]
    assert errors, printed
    assert all("cut between the image features" in text for text in errors)
