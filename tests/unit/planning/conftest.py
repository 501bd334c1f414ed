"""Families that a test brings along."""

from __future__ import annotations

import pytest

from vlm_lora_plugin import get_manager


@pytest.fixture
def register():
    added = []

    def add(adapter):
        added.append(adapter)
        return get_manager().register(adapter)

    yield add
    for adapter in added:
        get_manager().unregister(adapter)
