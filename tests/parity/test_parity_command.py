"""``vlm-lora parity``: what it prints, draws and returns, when nothing differs and when something does."""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
from PIL import Image
from warm import warm

import vlm_lora_plugin.parity.both_runs as parity_run
from vlm_lora_plugin.parity import defaults
from vlm_lora_plugin.parity.defaults import differing_defaults

pytestmark = pytest.mark.xdist_group("parity")


@pytest.fixture
def command():
    from vlm_lora_plugin.cli.app import app

    def run(*arguments):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            app(args=[*map(str, arguments)], prog_name="vlm-lora")
        return end.value.code or 0, out.getvalue(), err.getvalue()

    return run


@pytest.fixture
def forked(monkeypatch):
    """What the parity command starts, but for ``swift sft``, is a fork of a process with the libraries imported."""
    monkeypatch.setattr(parity_run, "subprocess", warm("trainer").subprocess)
    monkeypatch.setattr(defaults, "subprocess", warm("swift").subprocess)


@pytest.fixture
def other_rate(forked, monkeypatch):
    """In Swift's place the Trainer, at another rate."""

    def run(job, recipe, side):
        optimizer = recipe.optimizer.model_copy(update={"learning_rate": {"default": 2e-2}})
        parity_run.run_trainer(job, recipe.model_copy(update={"optimizer": optimizer}), side)

    monkeypatch.setattr(parity_run, "run_in_swift", run)


def test_a_recipe_that_shards_is_refused(command, tmp_path):
    from vlm_lora_monkey.tiny import write_tiny_folder

    model, data = write_tiny_folder(tmp_path / "model"), tmp_path / "train.jsonl"
    data.write_text("{}\n")
    code, _, err = command("parity", model, "--data", data, "-o", tmp_path / "out", "--set", "hardware=2x24")
    assert code == 2
    assert "under ZeRO-3, and parity compares without DeepSpeed" in err


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("lora.r=4", "lora.r is 4 (the command line), but has no effect: nothing is trained by PEFT's LoRA"),
        ("gradient_checkpointing.head=true", "gradient_checkpointing.head is on (the command line), but has no effect"),
        ("evaluation.max_rows=3", "evaluation.max_rows is 3 (the command line), but has no effect"),
        ("training.num_train_epochs=3", "training.num_train_epochs is 3.0 (the command line), but has no effect"),
    ],
)
def test_a_key_without_effect_is_refused_before_anything_is_trained(command, tmp_path, setting, why):
    from vlm_lora_monkey.tiny import write_tiny_folder

    model, data = write_tiny_folder(tmp_path / "model"), tmp_path / "train.jsonl"
    data.write_text("{}\n")
    words = ("parity", model, "--data", data, "-o", tmp_path / "out", "-p", "lora", "--steps", 2, "--set", setting)
    code, _, err = command(*words)
    assert code == 2
    assert why in " ".join(err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["forked", "process"])
def test_the_demo_is_equal(command, tmp_path, request, trainer):
    if trainer == "forked":
        request.getfixturevalue("forked")
    code, out, err = command("parity", "--demo", "-o", tmp_path, "--json", "--steps", 2)
    assert code == 0, err
    found = json.loads(out)
    assert found["equal"] is True
    assert found["first_difference"] is None
    assert found["trainer"]["steps"] == found["swift"]["steps"]
    assert [line["step"] for line in found["swift"]["steps"]] == [1, 2]
    assert found["trainer"]["adapter_digest"] == found["swift"]["adapter_digest"] is not None
    with Image.open(tmp_path / "parity.png") as picture:
        picture.load()
        assert picture.width > 400


def test_a_difference_is_named_and_the_exit_code_is_1(command, other_rate, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    code, out, err = command("parity", "--demo", "monkey", "-o", tmp_path, "--steps", 2)
    assert code == 1, err
    assert "first difference: settings of the optimizer" in out
    assert "where: step 1" in out
    assert "transformers.Trainer: lr 0.01" in out
    assert "ms-swift: lr 0.02" in out
    assert "likely cause: Learning rate" in out
    assert (tmp_path / "parity.png").exists()


def test_what_cannot_be_compared_is_refused(command, tmp_path):
    assert command("parity")[0] == 2
    code, _, err = command("parity", tmp_path, "--data", tmp_path / "missing.jsonl")
    assert code == 2
    assert "Model error" in err


def test_defaults_that_differ_are_listed(command):
    code, out, _ = command("parity", "--defaults", "--json")
    assert code == 0
    found = {line["option"]: line for line in json.loads(out)}
    assert found["adam_beta2"]["trainer"] == "0.999"
    assert found["adam_beta2"]["swift"] == "0.95"
    assert found["adam_beta2"]["key"] == "optimizer.adam_beta2"
    assert (found["lora_alpha"]["trainer"], found["lora_alpha"]["swift"]) == ("8", "32")
    assert found["dataset_shuffle"]["value"] == "false"


ALL_THAT_DIFFER = """
import json, sys
from dataclasses import fields
from swift.arguments import SftArguments
from transformers import TrainingArguments

theirs = {field.name: field.default for field in fields(SftArguments)}
plain = [field for field in fields(TrainingArguments) if isinstance(field.default, (int, float, str, bool))]
differing = [field.name for field in plain if field.name in theirs and theirs[field.name] != field.default]
open(sys.argv[1], "w").write(json.dumps(differing))
"""


def test_no_differing_default_is_left_out(forked, tmp_path):
    """In a process of its own, because Swift changes transformers when it is imported."""
    warm("swift").run([sys.executable, "-c", ALL_THAT_DIFFER, tmp_path / "differing"], check=True)
    differing = set(json.loads((tmp_path / "differing").read_text()))
    assert differing
    assert differing <= {line.option for line in differing_defaults()}
