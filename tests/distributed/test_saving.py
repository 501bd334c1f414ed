"""What two processes save under each ZeRO stage, in both frameworks, and what can go on from it."""

from __future__ import annotations

import pytest
import torch
from forking import history, statuses, succeeded
from launching import largest_difference, trained, zero

from vlm_lora_plugin.checkpoint.completion import why_incomplete
from vlm_lora_plugin.names import canonical_name

RECIPE = {
    "preset": "lora+llm-lora",
    "lora": {"lora_dropout": 0.0},
    "optimizer": {"learning_rate": 1e-3, "warmup_ratio": 0.0},
    "training": {
        "max_steps": 4,
        "save_steps": 2,
        "save_total_limit": None,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "dataloader_num_workers": 0,
    },
}
ALONE = {**RECIPE, "training": {**RECIPE["training"], "per_device_train_batch_size": 4}}
ENGINES = {
    "ddp": None,
    "zero-1": zero(1),
    "zero-2": zero(2),
    "zero-3": zero(3),
    "zero-3, offload": zero(3, offload_param={"device": "cpu"}),
}
FRAMEWORKS = ("trainer", "swift")
pytestmark = pytest.mark.slow
each = pytest.mark.parametrize(("framework", "engine"), [(one, engine) for one in FRAMEWORKS for engine in ENGINES])


@pytest.fixture(scope="module")
def job(tiny_monkey, write_rows):
    rows = write_rows("tiitIittiitttiii")

    def make(output, engine, recipe=RECIPE, **more):
        return {
            "model": tiny_monkey,
            "data": rows,
            "output": output,
            "recipe": recipe,
            "deepspeed": ENGINES[engine],
            **more,
        }

    return make


@pytest.fixture(scope="module")
def whole(forked, job, tmp_path_factory):
    """The checkpoints of uninterrupted runs on two processes."""
    found = {}

    def get(framework, engine):
        if (framework, engine) not in found:
            folder = tmp_path_factory.mktemp("whole")
            succeeded(forked(framework).run(**job(folder, engine)))
            found[framework, engine] = folder
        return found[framework, engine]

    return get


@pytest.fixture(scope="module")
def alone(forked, job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    succeeded(forked("trainer").run(**job(folder, "ddp", ALONE, processes=1)))
    return folder


def same(left, right):
    """Whether two checkpoints hold the same bits, and came about by the same losses, to every digit."""
    one, other = trained(left), trained(right)
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one) and history(left) == history(right)


@each
def test_two_processes_save_what_one_saves(whole, alone, framework, engine):
    saved = whole(framework, engine) / "checkpoint-4"
    assert largest_difference(saved, alone / "checkpoint-4") < 1e-5
    assert {tensor.dtype for tensor in trained(saved).values()} == {torch.float32}
    assert why_incomplete(saved) is None


@each
def test_nothing_of_the_base_is_in_a_checkpoint(whole, framework, engine):
    saved = whole(framework, engine) / "checkpoint-4"
    names = {canonical_name(name) for name in trained(saved)}
    states = list(saved.glob("global_step4/*model_states.pt"))
    assert bool(states) == (engine != "ddp")
    for file in states:
        held = {canonical_name(name) for name in torch.load(file, weights_only=False)["module"]}
        assert held == names
    assert not list(saved.glob("model*")) + list(saved.glob("pytorch_model*"))


@each
def test_a_resumed_run_equals_the_uninterrupted_one(forked, whole, job, tmp_path, framework, engine):
    reference = whole(framework, engine)
    succeeded(forked(framework).run(**job(tmp_path, engine, resume=str(reference / "checkpoint-2"))))
    assert same(tmp_path / "checkpoint-4", reference / "checkpoint-4")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_checkpoint_of_either_framework_is_resumed_by_the_other(forked, whole, job, tmp_path, engine):
    for framework, other in (FRAMEWORKS, FRAMEWORKS[::-1]):
        reference = whole(framework, engine)
        assert same(reference / "checkpoint-4", whole(other, engine) / "checkpoint-4")
        succeeded(forked(other).run(**job(tmp_path / other, engine, resume=str(reference / "checkpoint-2"))))
        assert same(tmp_path / other / "checkpoint-4", reference / "checkpoint-4")


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("engine", "other", "processes", "said"),
    [
        ("zero-2", "zero-3", 2, "2 processes under ZeRO-2; 2 processes under ZeRO-3 would go on"),
        ("zero-2", "zero-1", 2, "2 processes under ZeRO-2; 2 processes under ZeRO-1 would go on"),
        ("zero-3", "ddp", 2, "2 processes under ZeRO-3; 2 processes without ZeRO would go on"),
        ("ddp", "zero-2", 2, "2 processes without ZeRO; 2 processes under ZeRO-2 would go on"),
        ("ddp", "ddp", 1, "2 processes without ZeRO; 1 process without ZeRO would go on"),
    ],
)
def test_another_stage_or_number_of_processes_is_refused(
    forked, whole, job, tmp_path, framework, engine, other, processes, said
):
    checkpoint = whole(framework, engine) / "checkpoint-2"
    ranks = forked(framework).run(**job(tmp_path / "out", other, resume=str(checkpoint), processes=processes))
    assert all(status != 0 for status in statuses(ranks))
    assert all(rank["error"] == "CheckpointError" for rank in ranks), ranks
    assert all(said in rank["message"] for rank in ranks), ranks
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_offloading_parameters_may_change(forked, whole, job, tmp_path):
    reference = whole("trainer", "zero-3")
    succeeded(forked("trainer").run(**job(tmp_path, "zero-3, offload", resume=str(reference / "checkpoint-2"))))
    assert same(tmp_path / "checkpoint-4", reference / "checkpoint-4")


@pytest.mark.parametrize(
    ("framework", "engine"), [(one, engine) for one in FRAMEWORKS for engine in ("zero-2", "zero-3")]
)
def test_the_best_checkpoint_is_loaded_at_the_end(forked, job, write_rows, tmp_path, framework, engine):
    """The first is called the best here: the one with the highest loss."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    recipe = {**RECIPE, "training": {**RECIPE["training"], "save_steps": 1, "eval_steps": 1}}
    ending = "import transformers\nend = transformers.Trainer.train\n"
    ending += "def train(self, *args, **kwargs):\n    result = end(self, *args, **kwargs)\n"
    ending += "    from vlm_lora_plugin.prepared.model import find_prepared\n"
    ending += f"    find_prepared(self.model).save_pretrained('{tmp_path}/ended')\n    return result\n"
    ending += "transformers.Trainer.train = train\n"
    ranks = forked(framework).run(
        **job(tmp_path / "out", engine, recipe, val=write_rows("iiti"), arguments=best, module=ending)
    )
    succeeded(ranks)
    assert largest_difference(tmp_path / "ended", tmp_path / "out" / "checkpoint-1") == 0
    assert largest_difference(tmp_path / "ended", tmp_path / "out" / "checkpoint-4") > 0
