"""Two processes under each ZeRO stage train, save and resume what one process does."""

from __future__ import annotations

import pytest
import torch
from launching import largest_difference, launch, trained, zero

from vlm_lora_plugin.checkpoint.completion import why_incomplete

ROWS = "ttiiiIttttttttii"  # two rows a rank: often only one rank has an image
CHECKPOINTING = {"gradient_checkpointing": {"vision": True, "language": True}}
JOBS = {
    "ddp": {},
    "zero-1": {"deepspeed": zero(1)},
    "zero-2": {"deepspeed": zero(2)},
    "zero-2, checkpointing": {"deepspeed": zero(2), "recipe": CHECKPOINTING},
    "zero-3": {"deepspeed": zero(3)},
    "zero-3, offload": {"deepspeed": zero(3, offload_param={"device": "cpu"})},
    "zero-3, checkpointing": {"deepspeed": zero(3), "recipe": CHECKPOINTING},
    "zero-3, no gathering by DeepSpeed": {"deepspeed": zero(3, stage3_gather_16bit_weights_on_model_save=False)},
}
FAST = ("zero-2", "zero-3, offload")
FULL = {"components": {"vision": "full", "language": "lora", "embeddings": "full"}}


def jobs(names):
    return {name: {"rows": ROWS, **JOBS[name]} for name in names}


@pytest.fixture(scope="module")
def alone(tiny_monkey, tmp_path_factory):
    return launch(tmp_path_factory.mktemp("alone"), tiny_monkey, {"plain": {"rows": ROWS}}, processes=1)


@pytest.fixture(scope="module")
def together(tiny_monkey, tmp_path_factory):
    """The jobs of one set, trained on two processes."""
    sets = {}

    def get(fast):
        if fast not in sets:
            names = [name for name in JOBS if (name in FAST) == fast]
            sets[fast] = launch(tmp_path_factory.mktemp("together"), tiny_monkey, jobs(names))
        return sets[fast]

    return get


each_job = pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in JOBS])


@each_job
def test_losses_are_those_of_one_process(alone, together, name):
    expected = alone.losses("plain")
    launched = together(name in FAST)

    for rank in range(2):
        losses = launched.losses(name, rank)
        assert losses.keys() == expected.keys()
        assert max(abs(losses[step] - expected[step]) for step in expected) < 1e-5


@each_job
def test_lora_starts_from_the_same_bits_as_in_one_process(alone, together, name):
    launched = together(name in FAST)
    expected, found = (
        trained(folder) for folder in (alone.folder / "plain" / "start", launched.folder / name / "start")
    )

    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@each_job
@pytest.mark.parametrize("saved", ["adapter", "checkpoints/checkpoint-4"])
def test_whole_fp32_tensors_are_saved_as_by_one_process(alone, together, name, saved):
    folder = together(name in FAST).folder / name / saved

    assert largest_difference(alone.folder / "plain" / saved, folder) < 1e-5
    assert {tensor.dtype for tensor in trained(folder).values()} == {torch.float32}


@each_job
def test_a_checkpoint_is_complete_when_both_ranks_have_written(together, name):
    checkpoint = together(name in FAST).folder / name / "checkpoints" / "checkpoint-4"

    assert why_incomplete(checkpoint) is None
    if JOBS[name].get("deepspeed"):
        assert len(list(checkpoint.glob("global_step4/*rank_[01]*optim_states.pt"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_base_in_16_bit_is_trained_in_fp32_and_saved_in_fp32(tiny_monkey, tmp_path, stage):
    job = {"rows": ROWS, "dtype": "bfloat16"}
    one = launch(tmp_path, tiny_monkey, {"one": job}, processes=1)
    two = launch(tmp_path, tiny_monkey, {"two": {**job, "deepspeed": zero(stage)}})

    expected, found = one.losses("one"), two.losses("two")
    assert max(abs(found[step] - expected[step]) for step in expected) < 2e-2  # bf16 has three digits
    saved = trained(tmp_path / "two" / "adapter")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert any((tensor != tensor.bfloat16().float()).any() for tensor in saved.values()), "rounded to 16 bit"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_weights_trained_in_full_are_saved_whole(tiny_monkey, tmp_path, stage):
    job = {"rows": ROWS, "recipe": FULL}
    launch(tmp_path, tiny_monkey, {"one": job}, processes=1)
    two = launch(tmp_path, tiny_monkey, {"two": {**job, "deepspeed": zero(stage)}})

    assert two.status == 0, two.printed
    assert largest_difference(tmp_path / "one" / "adapter", tmp_path / "two" / "adapter") < 1e-5


@pytest.mark.slow
def test_loading_before_the_arguments_is_refused_under_zero_3(tiny_monkey, tmp_path):
    job = {"rows": "tttt", "deepspeed": zero(3), "mistake": "arguments last"}

    done = launch(tmp_path, tiny_monkey, {"job": job})

    assert done.status != 0
    for rank in range(2):
        assert "loaded before TrainingArguments" in done.result("job", rank)["message"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_model_inside_an_engine_is_refused(tiny_monkey, tmp_path, stage):
    job = {"rows": "tttt", "deepspeed": zero(stage), "mistake": "prepare in an engine"}

    done = launch(tmp_path, tiny_monkey, {"job": job})

    assert "DeepSpeedEngine" in done.result("job")["message"]
