"""What does not learn is noticed under ZeRO too, and what learns raises no false alarm."""

from __future__ import annotations

import pytest
from launching import launch, zero

ROWS = "ttiiiIttttttttii" * 4
LONG = {"training": {"max_steps": 12, "save_steps": 100}}  # beyond the steps after which everything must have moved


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_sound_run_raises_no_alarm(tiny_monkey, tmp_path, stage):
    done = launch(tmp_path, tiny_monkey, {"job": {"rows": ROWS, "deepspeed": zero(stage), "recipe": LONG}})

    assert done.status == 0, done.printed
    assert len(done.losses("job")) == 12


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_cut_image_gradient_stops_the_run(tiny_monkey, tmp_path, stage):
    job = {"rows": "i" * 16, "deepspeed": zero(stage), "recipe": LONG, "mistake": "image gradient cut"}

    done = launch(tmp_path, tiny_monkey, {"job": job})

    assert done.status != 0
    assert any("cut between the image features" in done.result("job", rank).get("message", "") for rank in range(2))
