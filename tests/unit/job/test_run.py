"""A job that fails before its first step is done leaves no trace; one that fails later keeps what it has."""

import json

import pytest
from PIL import Image

from vlm_lora_plugin.errors import TrainingError
from vlm_lora_plugin.job import TrainJob
from vlm_lora_plugin.job import train as job_run
from vlm_lora_plugin.job.preflight import preflight


@pytest.fixture
def job(tmp_path):
    from vlm_lora_monkey.tiny import write_tiny_folder

    model = write_tiny_folder(tmp_path / "model")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    turns = [{"role": "user", "content": "<image>Which colour?"}, {"role": "assistant", "content": "red"}]
    data = tmp_path / "train.jsonl"
    data.write_text(json.dumps({"messages": turns, "images": ["red.png"]}) + "\n")
    settings = {"max_steps": 2, "gradient_accumulation_steps": 1, "dataloader_num_workers": 0}
    return TrainJob(model=model, data=data, output=tmp_path / "out", overrides={"training": settings})


def fail_at(monkeypatch, step):
    """Make the Trainer fail when it begins a step."""
    original = job_run.VlmLoraCallback.on_step_begin

    def failing(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise TrainingError("it broke")
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(job_run.VlmLoraCallback, "on_step_begin", failing)


def test_a_failure_before_the_first_step_leaves_no_output_folder(job, monkeypatch):
    fail_at(monkeypatch, 0)
    with pytest.raises(TrainingError, match="it broke"):
        job_run.run(job)
    assert not job.output.exists()


def test_a_failure_before_the_first_step_leaves_old_results_alone(job, monkeypatch):
    (job.output / "adapter").mkdir(parents=True)
    (job.output / "log.jsonl").write_text("old")
    fail_at(monkeypatch, 0)
    with pytest.raises(TrainingError):
        job_run.run(TrainJob(**{**vars(job), "overwrite": True}))
    assert (job.output / "log.jsonl").read_text() == "old"
    assert {path.name for path in job.output.iterdir()} == {"adapter", "log.jsonl"}


def test_a_failure_after_the_first_step_keeps_log_and_recipe_but_has_no_adapter(job, monkeypatch):
    fail_at(monkeypatch, 1)
    with pytest.raises(TrainingError):
        job_run.run(job)
    assert len((job.output / "log.jsonl").read_text().splitlines()) == 1
    assert (job.output / "recipe.yaml").is_file()
    assert not (job.output / "adapter").exists()


def test_a_finished_job_says_what_it_did(job):
    result = job_run.run(job)
    lines = [json.loads(line) for line in (job.output / "log.jsonl").read_text().splitlines()]
    assert result.steps == 2
    assert (result.first_loss, result.last_loss) == (lines[0]["loss"], lines[1]["loss"])
    assert result.eval_loss is None
    assert result.adapter == job.output / "adapter"


def test_preflight_writes_nothing(job, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    plan = preflight(job)
    assert plan.statistics["training"].rows == 1
    assert plan.summary.trainable > 0
    assert sorted(tmp_path.rglob("*")) == before
