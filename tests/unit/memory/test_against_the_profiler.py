"""What is traced without values is what PyTorch's profiler sees of a real step."""

from __future__ import annotations

import statistics

import pytest
import torch
from measuring import Setting, measured, traced

BF16 = torch.bfloat16
BOTH = {"vision": True, "language": True}
NONE = {"vision": False, "language": False}
LANGUAGE = {"vision": False, "language": True}

PRESETS = {
    "monkey": ("lora", "lora-only", "lora+llm", "lora+llm-lora"),
    "omnilmm": ("lora", "lora-text", "lora+vision"),
    "xcomposer2": ("lora", "full-llm"),
    "xcomposer2_4khd": ("lora", "lora+separators", "lora+projector", "full"),
    "xcomposer2_5": ("lora-low-memory",),
}


def with_boxes(model: str, preset: str, boxes: dict[str, bool]) -> dict[str, object]:
    """A preset with switches of checkpointing, the tower's left out where nothing in it learns."""
    sees = model == "monkey" or preset in ("lora+vision", "full")
    return {"preset": preset, "gradient_checkpointing": boxes if sees else {"language": boxes["language"]}}


MANY = [
    Setting(model, with_boxes(model, preset, boxes), dtype, rows, tokens, images, answers, accumulates)
    for model, presets in PRESETS.items()
    for preset in presets
    for boxes, dtype, rows, tokens, images, answers, accumulates in (
        (BOTH, torch.float32, 1, 400, 1, 40, False),
        (NONE, BF16, 2, 300, 1, 120, True),
        (LANGUAGE, BF16, 1, 500, 2, 60, False),
    )
]
QUICK = [
    Setting("monkey", {"preset": "lora", "gradient_checkpointing": BOTH}),
    Setting("omnilmm", with_boxes("omnilmm", "lora", NONE), BF16, rows=2, accumulates=True),
    Setting("xcomposer2_4khd", with_boxes("xcomposer2_4khd", "lora", LANGUAGE), BF16, images=2),
]


def error(setting: Setting) -> tuple[float, float]:
    """Return by how much the trace is off, of everything and of all but what is always alive."""
    step, batch = traced(setting)
    real = measured(setting, batch)
    return step.peak.bytes / real - 1, step.moving / (real - step.static) - 1


@pytest.mark.parametrize("setting", QUICK, ids=str)
def test_the_peak_of_a_step_is_the_measured_one(setting):
    whole, moving = error(setting)
    assert abs(whole) <= 0.01
    assert abs(moving) <= 0.02


@pytest.mark.slow
def test_over_many_settings_the_mean_error_is_small_too():
    assert len(MANY) >= 40
    errors = {str(setting): error(setting) for setting in MANY}
    assert max(abs(whole) for whole, _ in errors.values()) <= 0.01, errors
    assert max(abs(moving) for _, moving in errors.values()) <= 0.02, errors
    assert statistics.mean(abs(whole) for whole, _ in errors.values()) <= 0.003
    assert statistics.mean(abs(moving) for _, moving in errors.values()) <= 0.005
