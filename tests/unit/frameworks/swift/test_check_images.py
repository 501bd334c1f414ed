"""``vlm-lora train --framework swift --no-check-images``: Swift's process reads headers alone, too."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from vlm_lora_plugin import load
from vlm_lora_plugin.errors import DataError
from vlm_lora_plugin.frameworks.swift.job import JOB_VARIABLE, SwiftJob
from vlm_lora_plugin.job import in_swift
from vlm_lora_plugin.planning.resolved import ResolvedRecipe

JOB = SwiftJob(
    output="out", recipe="", sources="{}", data="", kept_log=None, elapsed=0.0, metric=None, notes="notes.json"
)


@pytest.fixture
def read(swift, model, data, tmp_path, monkeypatch):
    """Reads the data as ``swift sft`` does in a job, of which one image is cut short behind its header."""
    from vlm_lora_plugin.frameworks.swift.pipeline import reading_data

    image = data.parent / "b.png"
    image.write_bytes(image.read_bytes()[:-30])
    monkeypatch.setenv("VLM_LORA_RECIPE", "lora")
    args = {"model_type": "monkey", "dataset": [str(data)], "val_dataset": [], "system": None}
    args["model_info"] = SimpleNamespace(model_dir=str(model))
    run = SimpleNamespace(
        args=SimpleNamespace(tuner_type="vlm_lora", **args),
        template=SimpleNamespace(inner=load(model, device="meta")[1]),
    )

    def read(job):
        if job is not None:
            job.write(tmp_path / "job.json")
            monkeypatch.setenv(JOB_VARIABLE, str(tmp_path / "job.json"))
        return reading_data(lambda self: [])(run)[0]

    return read


@pytest.mark.parametrize("job", [None, JOB], ids=["started by hand", "a job"])
def test_every_image_is_decoded(read, job):
    with pytest.raises(DataError, match=r"b\.png"):
        read(job)


def test_a_job_that_does_not_check_images_reads_headers_alone(read):
    assert len(read(dataclasses.replace(JOB, check_images=False))) == 6


@pytest.mark.parametrize("wanted", [True, False])
def test_the_job_tells_swifts_process(tmp_path, monkeypatch, wanted):
    told = []

    def run_swift(command, arguments, *, environment, **_):
        monkeypatch.setenv(JOB_VARIABLE, environment[JOB_VARIABLE])
        told.append(SwiftJob.of_process())
        return 0

    monkeypatch.setattr(in_swift, "run_swift", run_swift)
    monkeypatch.setattr(in_swift, "_arguments", lambda plan, folder, launched: [])
    monkeypatch.setattr(in_swift, "wanted_launch", lambda *_: None)
    monkeypatch.setattr(in_swift, "swift_processes", lambda launch: {})
    output = SimpleNamespace(folder=tmp_path, log=tmp_path / "log.jsonl", framework_log=tmp_path / "swift.log")
    recipe = ResolvedRecipe()
    job = SimpleNamespace(check_images=wanted, model=tmp_path / "model")
    plan = SimpleNamespace(
        output=output,
        recipe=recipe,
        job=job,
        records={},
        files={},
        parent=None,
        moments=None,
        resumed=None,
        metric=None,
        hardware=None,
        dtype=torch.float32,
    )
    in_swift.train_in_swift(plan, console=None)
    assert [job.check_images for job in told] == [wanted]
