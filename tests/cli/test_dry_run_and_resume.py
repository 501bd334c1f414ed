"""``vlm-lora train --dry-run`` and ``--resume``: the real command."""

import json
import shutil

import yaml

QUICK = ("--max-steps", 4, "--set", "training.gradient_accumulation_steps=1", "--set", "training.save_steps=2")


def files(folder):
    return {path.relative_to(folder): path.is_dir() or path.read_bytes() for path in folder.rglob("*")}


def test_a_dry_run_shows_everything_and_writes_nothing(vlm_lora, model, data, tmp_path):
    before = files(tmp_path)
    outcome = vlm_lora("train", model, "--data", data, "-o", tmp_path / "deep" / "out", *QUICK, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert files(tmp_path) == before
    assert outcome.out.index("built-in LoRA") < outcome.out.index("supervised tokens")
    shown = outcome.out.partition("\n\n")[2].rpartition("\nEverything is in order")[0]
    recipe = yaml.safe_load(shown)
    assert recipe["training"]["max_steps"] == 4
    assert recipe["preset"] is None
    assert recipe["rules"] or recipe["components"]


def test_a_dry_run_refuses_what_training_would(vlm_lora, model, data, tmp_path):
    (tmp_path / "green-1.png").write_bytes(b"not an image")
    outcome = vlm_lora("train", model, "--data", data, "-o", tmp_path / "out", *QUICK, "--dry-run")
    assert outcome.code == 2
    assert "green-1.png" in outcome.err
    assert not (tmp_path / "out").exists()


def test_resume_goes_on_to_the_same_adapter(vlm_lora, model, data, tmp_path):
    output = tmp_path / "out"
    arguments = ("train", model, "--data", data, "-o", output, *QUICK)
    assert vlm_lora(*arguments).code == 0
    adapter = files(output / "adapter")
    shutil.rmtree(output / "adapter")
    shutil.rmtree(output / "checkpoints" / "checkpoint-4")
    outcome = vlm_lora(*arguments, "--resume")
    assert outcome.code == 0, outcome.err
    assert "checkpoint-2" in outcome.out
    assert files(output / "adapter") == adapter
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    before = files(output)
    other = vlm_lora(*arguments, "--resume", "--set", "optimizer.learning_rate=0.5")
    assert other.code == 2
    assert "optimizer.learning_rate" in other.err
    assert files(output) == before


def test_resume_without_a_job_is_refused(vlm_lora, model, data, tmp_path):
    outcome = vlm_lora("train", model, "--data", data, "-o", tmp_path / "out", "--resume")
    assert outcome.code == 2
    assert "no job to go on with" in outcome.err


def test_resume_and_overwrite_exclude_each_other(vlm_lora, model, data, tmp_path):
    outcome = vlm_lora("train", model, "--data", data, "-o", tmp_path / "out", "--resume", "--overwrite")
    assert outcome.code == 2
    assert "--overwrite replaces" in outcome.err
