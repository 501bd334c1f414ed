"""The demo, as ``make demo`` runs it."""

import re
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("family", [[], ["omnilmm"], ["xcomposer"]], ids=["default", "omnilmm", "xcomposer"])
def test_the_demo_learns_to_read_digits_and_its_adapter_answers_the_same_when_reloaded(tmp_path, family):
    outcome = subprocess.run(
        [sys.executable, "-m", "vlm_lora_plugin.cli", "train", *family, "--demo", "-o", tmp_path / "demo"],
        capture_output=True,
        text=True,
        check=True,
    )
    line = outcome.stdout.strip().splitlines()[-1]
    figures = re.fullmatch(r"held-out exact match: base (\d\.\d\d) -> tuned (\d\.\d\d) \(reloaded (\d\.\d\d)\)", line)
    assert figures, line
    base, tuned, reloaded = map(float, figures.groups())
    assert base <= 0.2
    assert tuned >= 0.9
    assert reloaded == tuned
