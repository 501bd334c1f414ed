"""One of two ranks is killed while a checkpoint is saved; the job goes on from the last complete one."""

from __future__ import annotations

import pytest
from launching import launch, trained, zero

from vlm_lora_plugin.checkpoint.completion import why_incomplete

ROWS = "tiitIittiitttiii"
ENGINES = {"ddp": None, "zero-1": zero(1), "zero-2": zero(2), "zero-3": zero(3)}
MOMENTS = ("save_model", "_save_optimizer_and_scheduler", "_save_rng_state")
CASES = [
    pytest.param(engine, moment, id=f"{engine} {moment}", marks=() if fast else pytest.mark.slow)
    for engine in ENGINES
    for moment in MOMENTS
    for fast in [(engine, moment) == ("zero-3", "_save_rng_state")]
]


@pytest.mark.parametrize(("engine", "moment"), CASES)
def test_resumed_after_a_kill_it_ends_like_the_uninterrupted_run(tiny_monkey, tmp_path, engine, moment):
    job = {"rows": ROWS, "deepspeed": ENGINES[engine]}
    killed = launch(tmp_path, tiny_monkey, {"whole": job, "job": {**job, "kill": [1, 4, moment]}})

    assert killed.status != 0
    assert why_incomplete(tmp_path / "job" / "checkpoints" / "checkpoint-2") is None
    assert why_incomplete(tmp_path / "job" / "checkpoints" / "checkpoint-4") is not None

    resumed = launch(tmp_path, tiny_monkey, {"job": {**job, "resume": True}})

    assert resumed.status == 0, resumed.printed
    expected = {step: entry for step, entry in killed.result("whole")["losses"].items() if int(step) > 2}
    for rank in range(2):
        assert resumed.result("job", rank)["losses"] == expected, "to every printed digit"
    one, other = (trained(tmp_path / name / "adapter") for name in ("whole", "job"))
    assert all((one[name] == other[name]).all() for name in one)
    assert (tmp_path / "job" / "checkpoints" / "incomplete-checkpoint-4").is_dir()
