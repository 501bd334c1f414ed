"""Going on: ``train --from-adapter``, ``--resume`` without ``--data``, and a finished job that is trained longer."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from vlm_lora_plugin.checkpoint.manifest_file import read_manifest
from vlm_lora_plugin.prepared.lineage import adapter_digest

SETTINGS = {
    "training.gradient_accumulation_steps": 1,
    "training.save_steps": 2,
    "training.dataloader_num_workers": 0,
    "optimizer.warmup_ratio": 0.0,
    "optimizer.learning_rate": 0.01,
}
QUICK = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]


def tensors(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def moments(checkpoint):
    return torch.load(checkpoint / "optimizer.pt", weights_only=True)


def log(job):
    return [json.loads(line) for line in (job / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def first(tmp_path_factory, model):
    """A finished job of four steps, and its data."""
    from vlm_lora_plugin.cli.app import app

    folder = tmp_path_factory.mktemp("first")
    file = folder / "train.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n} " * (n + 1)}]}
        for n in range(6)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = (
        "train",
        model,
        "--data",
        file,
        "-o",
        folder / "job",
        *QUICK,
        "--preset",
        "lora+llm-lora",
        "--max-steps",
        4,
    )
    with pytest.raises(SystemExit) as end:
        app(args=[*map(str, words), "--set", "lora.r=4"], prog_name="vlm-lora")
    assert not end.value.code
    return folder / "job"


@pytest.fixture
def job(first, tmp_path):
    """A copy of the finished job, whose data lies where it lay."""
    shutil.copytree(first, tmp_path / "job")
    return tmp_path / "job"


@pytest.fixture
def rows(write_data):
    return write_data("more.jsonl", 3)


def test_new_data_trains_on_from_an_adapter_and_the_manifest_tells_where_it_came_from(
    vlm_lora, model, first, rows, tmp_path
):
    outcome = vlm_lora(
        "train", model, "--data", rows, "-o", tmp_path / "child", "--from-adapter", first, "--max-steps", 2
    )
    assert outcome.code == 0, outcome.err
    assert f"starting from {first / 'adapter'}, trained for 4 steps, with a fresh optimizer" in outcome.out
    manifest, parent = read_manifest(tmp_path / "child" / "adapter"), read_manifest(first / "adapter")
    assert manifest.recipe["lora"] == parent.recipe["lora"]
    assert manifest.recipe["optimizer"] == parent.recipe["optimizer"]
    assert manifest.recipe["origin"] == parent.recipe["origin"] == "monkey/lora+llm-lora"
    assert (parent.steps, parent.lineage) == (4, ())
    assert manifest.steps == 2
    assert [(entry.digest, entry.steps) for entry in manifest.lineage] == [(adapter_digest(first / "adapter"), 4)]
    assert not same(tensors(tmp_path / "child" / "adapter"), tensors(first / "adapter"))

    grandchild = (
        "train",
        model,
        "--data",
        rows,
        "-o",
        tmp_path / "third",
        "--from-adapter",
        tmp_path / "child" / "adapter",
    )
    assert vlm_lora(*grandchild, "--max-steps", 1).code == 0
    lineage = read_manifest(tmp_path / "third" / "adapter").lineage
    assert [entry.steps for entry in lineage] == [4, 2]
    assert lineage[1].digest == adapter_digest(tmp_path / "child" / "adapter")


@pytest.mark.parametrize("start", ["job", "job/adapter", "job/checkpoints/checkpoint-4"])
def test_its_first_step_starts_from_the_adapters_weights(vlm_lora, model, job, rows, tmp_path, start):
    words = ("train", model, "--data", rows, "-o", tmp_path / "child", "--from-adapter", tmp_path / start)
    assert vlm_lora(*words, "--max-steps", 1, "--set", "optimizer.learning_rate=0").code == 0
    assert same(tensors(tmp_path / "child" / "adapter"), tensors(job / "adapter"))


def test_the_optimizer_is_fresh_or_kept(vlm_lora, model, job, rows, tmp_path):
    """Its first job's rows had no image, so that what sees has no moments yet; other decays make other groups."""
    known = moments(job / "checkpoints" / "checkpoint-4")["state"]
    for name, words in (("fresh", ()), ("kept", ("--keep-optimizer",))):
        command = ("train", model, "--data", rows, "-o", tmp_path / name, "--from-adapter", job, *words)
        outcome = vlm_lora(*command, "--max-steps", 1, "--set", "optimizer.weight_decay=0")
        assert outcome.code == 0, outcome.err
    fresh, kept = (moments(tmp_path / name / "checkpoints" / "checkpoint-1") for name in ("fresh", "kept"))
    assert {float(entry["step"]) for entry in fresh["state"].values()} == {1.0}
    steps = [float(entry["step"]) for entry in kept["state"].values()]
    assert set(steps) == {1.0, 5.0}
    assert steps.count(5.0) == len(known) > 0
    assert len(steps) == len(fresh["state"])
    assert {group["weight_decay"] for group in kept["param_groups"]} == {0.0}


def test_what_contradicts_the_adapter_is_refused_by_name(vlm_lora, model, job, rows, tmp_path):
    words = ("train", model, "--data", rows, "-o", tmp_path / "child", "--from-adapter", job)
    for more, said in (
        (("--set", "lora.r=8"), "lora.r: 4 / 8"),
        (("--set", "components.aligner=frozen"), "transformer.visual.attn_pool"),
        (("--preset", "lora"), "monkey/lora+llm-lora / monkey/lora"),
        (("--keep-optimizer", "--resume"), "--resume goes on with the job"),
        (("-o", job, "--overwrite"), "would take the place of"),
    ):
        outcome = vlm_lora(*words, *more)
        assert outcome.code == 2, outcome.out
        assert said in outcome.err
    shutil.rmtree(job / "checkpoints")
    outcome = vlm_lora(*words, "--keep-optimizer")
    assert "state of the optimizer that trained" in outcome.err
    outcome = vlm_lora("train", model, "--data", rows, "-o", tmp_path / "child", "--keep-optimizer")
    assert "Give --from-adapter too" in outcome.err
    outcome = vlm_lora("train", model, "--data", rows, "-o", tmp_path / "child", "--from-adapter", tmp_path)
    assert outcome.code == 2
    assert "has no vlm_lora_manifest.json" in outcome.err
    assert not (tmp_path / "child").exists()


@pytest.mark.slow
def test_a_child_that_is_resumed_ends_as_the_uninterrupted_one(vlm_lora, model, job, rows, tmp_path):
    child = tmp_path / "child"
    words = ("train", model, "--data", rows, "-o", child, "--from-adapter", job, "--keep-optimizer", "--max-steps", 4)
    assert vlm_lora(*words).code == 0
    whole, manifest = tensors(child / "adapter"), read_manifest(child / "adapter")
    shutil.rmtree(child / "adapter")
    shutil.rmtree(child / "checkpoints" / "checkpoint-4")
    outcome = vlm_lora("train", model, "-o", child, "--resume")
    assert outcome.code == 0, outcome.err
    assert same(tensors(child / "adapter"), whole)
    assert read_manifest(child / "adapter") == manifest
    assert [entry.steps for entry in manifest.lineage] == [4]


def test_resume_knows_the_jobs_own_data(vlm_lora, model, first, job):
    before = tensors(job / "adapter")
    shutil.rmtree(job / "adapter")
    outcome = vlm_lora("train", model, "-o", job, "--resume")
    assert outcome.code == 0, outcome.err
    assert same(tensors(job / "adapter"), before)
    kept = json.loads((job / "data.json").read_text())
    assert kept["training"]["path"] == str(first.with_name("train.jsonl"))
    (job / "data.json").write_text(json.dumps({"training": {**kept["training"], "path": "/nowhere/train.jsonl"}}))
    outcome = vlm_lora("train", model, "-o", job, "--resume")
    assert outcome.code == 2
    assert "/nowhere/train.jsonl" in outcome.err
    assert vlm_lora("train", model, "--data", first.with_name("train.jsonl"), "-o", job, "--resume").code == 0
    del kept["training"]["path"]
    (job / "data.json").write_text(json.dumps(kept))
    outcome = vlm_lora("train", model, "-o", job, "--resume")
    assert "earlier version" in outcome.err


def test_resume_knows_the_jobs_own_model(vlm_lora, model, first, job, tmp_path):
    before, record = tensors(job / "adapter"), json.loads((job / "data.json").read_text())
    shutil.rmtree(job / "adapter")
    outcome = vlm_lora("train", "--resume", "-o", job)
    assert outcome.code == 0, outcome.err
    assert same(tensors(job / "adapter"), before)
    assert record["model"] == {"path": str(model)}

    moved = tmp_path / "moved"
    (job / "data.json").write_text(json.dumps({**record, "model": {"path": str(moved)}}))
    outcome = vlm_lora("train", "--resume", "-o", job)
    assert outcome.code == 2
    assert f"was started with is no longer there: {moved}" in " ".join(outcome.err.split())
    assert "vlm-lora train MODEL --resume" in outcome.err
    assert vlm_lora("train", model, "--resume", "-o", job, "--dry-run").code == 0

    del record["model"]
    (job / "data.json").write_text(json.dumps(record))
    outcome = vlm_lora("train", "--resume", "-o", job)
    assert outcome.code == 2
    assert "does not say which model" in outcome.err
    assert vlm_lora("train", model, "--resume", "-o", job, "--dry-run").code == 0, "as of an earlier version"

    outcome = vlm_lora("train", "--resume")
    assert outcome.code == 2
    assert "--output" in outcome.err
    assert "MODEL" not in outcome.err


def test_a_finished_job_is_trained_longer(vlm_lora, model, job):
    outcome = vlm_lora("train", model, "-o", job, "--resume", "-s", "training.max_steps=6")
    assert outcome.code == 0, outcome.err
    assert "going on from" in outcome.out
    assert "after 4 steps, which were the whole job" in outcome.out
    manifest = read_manifest(job / "adapter")
    assert (manifest.steps, manifest.recipe["training"]["max_steps"], manifest.lineage) == (6, 6, ())
    assert "max_steps: 6" in (job / "recipe.yaml").read_text()
    lines = [line for line in log(job) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    # Cosine over six steps from the fifth on, at whose start the rate of the four had ended at zero.
    state = moments(job / "checkpoints" / "checkpoint-6")
    assert {group["initial_lr"] for group in state["param_groups"]} == {0.01}
    assert not same(tensors(job / "checkpoints" / "checkpoint-4"), tensors(job / "adapter"))

    again = vlm_lora("train", model, "-o", job, "--resume")
    assert again.code == 0, again.err
    assert read_manifest(job / "adapter") == manifest


def test_the_first_step_of_a_longer_job_takes_the_longer_schedules_rate(vlm_lora, model, job):
    """The checkpoint's own is that of the end of the shorter schedule: zero."""
    assert vlm_lora(
        "train", model, "-o", job, "--resume", "-s", "training.max_steps=5", "-s", "training.save_steps=1"
    ).code
    assert vlm_lora("train", model, "-o", job, "--resume", "-s", "training.max_steps=5").code == 0
    before, after = (tensors(job / "checkpoints" / f"checkpoint-{step}") for step in (4, 5))
    assert not same(before, after), "its one step had a rate"


@pytest.mark.slow
def test_a_job_interrupted_while_it_is_trained_longer_goes_on(vlm_lora, model, job):
    words = ("train", model, "-o", job, "--resume")
    assert vlm_lora(*words, "-s", "training.max_steps=8").code == 0
    whole = tensors(job / "adapter")
    shutil.rmtree(job / "checkpoints" / "checkpoint-8")
    shutil.rmtree(job / "adapter")
    assert vlm_lora(*words).code == 0
    assert same(tensors(job / "adapter"), whole)


@pytest.mark.slow
def test_a_longer_job_counts_epochs_too(vlm_lora, model, job):
    outcome = vlm_lora(
        "train", model, "-o", job, "--resume", "-s", "training.max_steps=-1", "-s", "training.num_train_epochs=0.5"
    )
    assert outcome.code == 2
    assert "training.num_train_epochs is 0.5, and the job has done 0.66" in outcome.err
    outcome = vlm_lora(
        "train", model, "-o", job, "--resume", "-s", "training.max_steps=-1", "-s", "training.num_train_epochs=1"
    )
    assert outcome.code == 0, outcome.err
    assert read_manifest(job / "adapter").steps == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("training.max_steps=3",), "training.max_steps is 3, and the job has done 4 steps"),
        (("training.max_steps=6", "optimizer.learning_rate=1e-3"), "optimizer.learning_rate"),
        (("lora.r=8",), "lora.r: 4 / 8"),
    ],
)
def test_anything_else_is_another_job(vlm_lora, model, job, words, said):
    before = {file: file.read_bytes() for file in job.rglob("*") if file.is_file()}
    outcome = vlm_lora("train", model, "-o", job, "--resume", *(part for word in words for part in ("-s", word)))
    assert outcome.code == 2
    assert said in outcome.err
    assert {file: file.read_bytes() for file in job.rglob("*") if file.is_file()} == before


def test_an_unfinished_job_keeps_its_length(vlm_lora, model, job):
    """Its schedule would be another from its first step on."""
    shutil.rmtree(job / "checkpoints" / "checkpoint-4")
    outcome = vlm_lora("train", model, "-o", job, "--resume", "-s", "training.max_steps=6")
    assert outcome.code == 2
    assert "2 of its 4 steps" in outcome.err
    shutil.rmtree(job / "adapter")
    outcome = vlm_lora("train", model, "-o", job, "--resume", "-s", "training.max_steps=6")
    assert "training.max_steps: 4 / 6" in outcome.err
    assert "finished can be trained longer" in outcome.err


@pytest.mark.slow
def test_swift_goes_on_as_the_trainer_does(vlm_lora, model, job, rows, tmp_path):
    for framework in ("trainer", "swift"):
        words = ("train", model, "--data", rows, "-o", tmp_path / framework, "--framework", framework)
        outcome = vlm_lora(*words, "--from-adapter", job, "--keep-optimizer", "--max-steps", 2)
        assert outcome.code == 0, outcome.err
        longer = ("train", model, "-o", tmp_path / framework, "--framework", framework, "--resume")
        outcome = vlm_lora(*longer, "-s", "training.max_steps=3")
        assert outcome.code == 0, outcome.err
    one, other = tmp_path / "trainer", tmp_path / "swift"
    assert same(tensors(one / "adapter"), tensors(other / "adapter"))
    assert read_manifest(one / "adapter") == read_manifest(other / "adapter")
    assert [entry.steps for entry in read_manifest(other / "adapter").lineage] == [4]
    assert read_manifest(other / "adapter").steps == 3
