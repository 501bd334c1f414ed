"""An adapter on disk."""

from __future__ import annotations

import pytest
from checkpoint_cases import tuned


@pytest.fixture
def saved(toy, tmp_path):
    model = tuned()
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"
