"""A rank that stops or hangs is named by the others, with the place where they wait. Intervals are shortened."""

from __future__ import annotations

import pytest
from forking import statuses, succeeded

RECIPE = {
    "preset": "lora+llm-lora",
    "training": {"max_steps": 3, "gradient_accumulation_steps": 1, "dataloader_num_workers": 0, "save_steps": 100},
}
IN_STEP_TWO = """
import os, signal, subprocess, time
import transformers
import vlm_lora_plugin.parallel.heartbeat as heartbeat

heartbeat.BEAT, heartbeat.PATIENCE = 0.2, 3.0

def stop(seconds=9):
    time.sleep(1)  # so that the last beat knows this step
    subprocess.Popen(["sh", "-c", f"sleep {{seconds}}; kill -CONT {{os.getpid()}}"])
    os.kill(os.getpid(), signal.SIGSTOP)

def hang(seconds=9):
    time.sleep(seconds)

if os.environ["RANK"] == "{rank}":
    original = transformers.Trainer.{method}
    def happens(self, *args, **kwargs):
        if self.state.global_step == 1:
            {what}
        if self.state.global_step == 2:
            time.sleep(2)  # so that the return is noticed before the run is over
        return original(self, *args, **kwargs)
    transformers.Trainer.{method} = happens
"""


def run(forked, tiny_monkey, write_rows, folder, framework="trainer", *, rank=1, what, method="training_step", **more):
    module = IN_STEP_TWO.format(rank=rank, what=what, method=method)
    recipe = {**RECIPE, **more}
    rows = write_rows("i" * 6)
    return forked(framework).run(model=tiny_monkey, data=rows, output=folder / "out", recipe=recipe, module=module)


@pytest.mark.parametrize("framework", ["trainer", pytest.param("swift", marks=pytest.mark.slow)])
def test_a_stopped_rank_is_named_and_so_is_its_return(forked, tiny_monkey, write_rows, tmp_path, framework):
    ranks = run(forked, tiny_monkey, write_rows, tmp_path, framework, what="stop()")
    succeeded(ranks)
    printed = ranks[0]["printed"]
    assert "vlm-lora: Rank 1 (process " in printed
    assert "has not been heard of for " in printed
    assert "it was last in step 2, fetching batches." in printed
    assert "Rank 0 waits in step 2, " in printed
    assert ".py:" in printed.partition("Rank 0 waits in step 2, ")[2]
    assert "the ranks work together again" in printed


@pytest.mark.slow
def test_a_rank_that_holds_what_they_share_is_named_too(forked, tiny_monkey, write_rows, tmp_path):
    ranks = run(forked, tiny_monkey, write_rows, tmp_path, rank=0, what="stop()")
    succeeded(ranks)
    printed = ranks[0]["printed"]
    assert "Rank 0 (process" in printed or "Rank 0, which holds what the ranks share" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "doing"), [("training_step", "fetching batches"), ("_prepare_inputs", "fetching batches")]
)
def test_a_rank_that_hangs_is_named_with_the_place(forked, tiny_monkey, write_rows, tmp_path, method, doing):
    ranks = run(forked, tiny_monkey, write_rows, tmp_path, what="hang()", method=method)
    succeeded(ranks)
    printed = ranks[0]["printed"]
    assert "Rank 1 (process " in printed
    assert f"has been in step 2, {doing} for " in printed
    assert "at hang (<string>:" in printed
    assert "Rank 0 waits in step 2, " in printed


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["trainer", "swift"])
def test_after_the_recipes_timeout_a_rank_gives_up_and_says_who_was_missing(
    forked, tiny_monkey, write_rows, tmp_path, framework
):
    ranks = run(
        forked, tiny_monkey, write_rows, tmp_path, framework, what="stop(20)", distributed={"timeout": 6}
    )  # fmt: skip
    assert statuses(ranks)[0] == 3, ranks
    assert ranks[0]["error"] == "TrainingError"
    assert "The ranks no longer work together" in ranks[0]["message"]
    assert "Rank 1 (process " in ranks[0]["message"]
    assert ranks[0]["seconds"] < 19
