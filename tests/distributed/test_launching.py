"""A job that hangs ends, and says where each rank stood."""

from __future__ import annotations

import pytest
from launching import launch, zero


@pytest.mark.slow
def test_ranks_that_wait_forever_are_cut_off_and_say_where_they_stood(tiny_monkey, tmp_path):
    job = {"rows": "tttt", "deepspeed": zero(3), "mistake": "one rank never comes"}

    done = launch(tmp_path, tiny_monkey, {"job": job}, job_seconds=30, forked=False)

    assert done.status != 0
    assert "[default0]:Timeout" in done.printed or "[default1]:Timeout" in done.printed, done.printed
    assert "job.py" in done.printed
