"""Ranks that are started with different commands agree before any of them waits for another, or all stop."""

from __future__ import annotations

import pytest
from launching import variables
from warm import warm

PROGRAM = """
import os, sys
from vlm_lora_plugin.cli import main
sys.argv = ["vlm-lora", "train", {model!r}, "--data", {data!r}, "-o", {output!r}, "--max-steps", "1",
            "--set", "training.dataloader_num_workers=0"]
sys.argv += {more!r} if os.environ["RANK"] == "{rank}" else []
main()
"""


@pytest.mark.parametrize(
    ("rank", "option", "said"),
    [
        (0, "--val-data", "validation data: given / none"),
        pytest.param(1, "--val-data", "validation data: none / given", marks=pytest.mark.slow),
        pytest.param(1, "--no-check-images", "check of images: True / False", marks=pytest.mark.slow),
    ],
)
def test_what_one_rank_alone_was_given_stops_both_with_the_reason(
    tiny_monkey, write_rows, tmp_path, rank, option, said
):
    rows = str(write_rows("iiii"))
    more = [option, rows] if option == "--val-data" else [option]
    program = PROGRAM.format(
        model=str(tiny_monkey), data=rows, output=str(tmp_path / "out"), rank=rank, more=more
    )  # fmt: skip
    ended = warm("trainer").fork(
        ["-c", program], env=variables(), ranks=2, launched=True, patience=30.0, seconds=120.0
    )  # fmt: skip
    assert ended.statuses == [3, 3], ended.stderr[-3000:]
    assert "The ranks are not about to train the same." in ended.stderr
    assert said in ended.stderr
    assert not (tmp_path / "out").exists()
