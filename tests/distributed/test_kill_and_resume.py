"""One of two ranks is killed while a checkpoint is saved; the job goes on from the last complete one."""

from __future__ import annotations

import shutil

import pytest
import torch
from forking import ForkedRanks, history, newest_complete, statuses, succeeded
from launching import trained, zero

from vlm_lora_plugin.checkpoint.completion import why_incomplete

STEPS = 4
RECIPE = {
    "preset": "lora+llm-lora",
    "lora": {"lora_dropout": 0.1},  # so that random states must come back, too
    "optimizer": {"learning_rate": 1e-3, "warmup_ratio": 0.0},
    "training": {
        "max_steps": STEPS,
        "save_steps": 1,
        "save_total_limit": None,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "dataloader_num_workers": 0,
    },
}
ENGINES = {"ddp": None, "zero-2": zero(2), "zero-3": zero(3)}
CASES = [(framework, engine) for framework in ("trainer", "swift") for engine in ENGINES]


@pytest.fixture(scope="session")
def rows(write_rows):
    return write_rows("tiitIittiitttiii")


def job(model, rows, output, engine, **more):
    return {"model": model, "data": rows, "output": output, "recipe": RECIPE, "deepspeed": ENGINES[engine], **more}


def equal(left, right):
    """Whether two checkpoints hold the same bits, and came about by the same losses."""
    one, other = trained(left), trained(right)
    same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return same and history(left) == history(right)


def moments(events, rank, every=1, first=0):
    """Kills at moments of a save, every other one with the file that was written last cut in the middle."""
    number = sum(event.split()[1].partition("/")[0] == "checkpoint-1" for event in events)
    numbers = range(first, number, every)
    return [{"rank": rank, "event": event, "cut": bool(place % 2)} for place, event in enumerate(numbers)]


@pytest.fixture(scope="module")
def whole(tiny_monkey, rows, tmp_path_factory):
    """Folder and ranks of a run that nothing interrupts, under ZeRO-3."""
    folder = tmp_path_factory.mktemp("whole") / "job"
    return folder, ForkedRanks("trainer").run(**job(tiny_monkey, rows, folder, "zero-3"))


@pytest.fixture(scope="module")
def killed(whole, tiny_monkey, rows, tmp_path_factory):
    """The same, of which rank 1 was killed when it had half written its random states of step 3."""
    wanted = next(n for n, e in enumerate(whole[1][1]["events"]) if e.endswith("checkpoint-3/rng_state_1.pth"))
    folder = tmp_path_factory.mktemp("killed") / "job"
    kill = {"rank": 1, "event": wanted, "cut": True}
    return folder, ForkedRanks("trainer").run(**job(tiny_monkey, rows, folder, "zero-3", kill=kill))


def test_every_checkpoint_of_a_run_that_nothing_interrupts_is_complete(whole):
    folder, ranks = whole
    succeeded(ranks)
    assert {path.name: why_incomplete(path) for path in folder.glob("checkpoint-*")} == {
        f"checkpoint-{step}": None for step in range(1, STEPS + 1)
    }


@pytest.mark.slow
def test_a_rank_killed_between_its_files_costs_only_that_checkpoint(killed):
    folder, ranks = killed
    assert statuses(ranks)[1] == -9
    assert statuses(ranks)[0] != 0, "the other rank must not wait for it, nor go on"
    assert "checkpoint-3" in {path.name for path in folder.iterdir()}
    assert newest_complete(folder).name == "checkpoint-2"


@pytest.mark.slow
def test_a_job_whose_rank_was_killed_ends_like_the_uninterrupted_one(whole, killed, tiny_monkey, rows, tmp_path):
    folder = shutil.copytree(killed[0], tmp_path / "job")
    succeeded(ForkedRanks("trainer").run(**job(tiny_monkey, rows, folder, "zero-3", resume=True)))
    assert equal(folder / f"checkpoint-{STEPS}", whole[0] / f"checkpoint-{STEPS}")
    assert (folder / "incomplete-checkpoint-3").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "engine"), CASES)
def test_killed_at_any_moment_of_a_save_it_ends_like_the_uninterrupted_run(
    forked, tiny_monkey, rows, tmp_path, framework, engine
):
    run, output, reference = forked(framework).run, tmp_path / "job", tmp_path / "whole"
    whole = run(**job(tiny_monkey, rows, reference, engine))
    succeeded(whole)
    # Both frameworks save by the same code; each is killed at half of the moments of the rank that writes most.
    of_first = moments(whole[0]["events"], 0, every=2, first=int(framework == "swift"))
    kills = [*moments(whole[1]["events"], 1), *of_first]
    assert len(kills) > 7
    hit = 0
    for kill in kills:
        found = newest_complete(output) if output.exists() else None
        if found is not None and found.name == f"checkpoint-{STEPS}":
            assert equal(found, reference / found.name)
            shutil.rmtree(output)
            found = None
        # What comes after the record is written does not keep a checkpoint from being complete.
        killed = run(**job(tiny_monkey, rows, output, engine, kill=kill, resume=found and str(found)))
        assert statuses(killed)[kill["rank"]] == -9, killed
        for path in output.glob("checkpoint-*"):
            complete = why_incomplete(path) is None
            assert not complete or equal(path, reference / path.name), (kill, path)
            hit += not complete
    found = newest_complete(output)
    succeeded(run(**job(tiny_monkey, rows, output, engine, resume=found and str(found))))
    assert equal(output / f"checkpoint-{STEPS}", reference / f"checkpoint-{STEPS}")
    assert hit > len(kills) // 2, "most kills must come in the middle of a save"
