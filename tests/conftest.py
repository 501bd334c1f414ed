"""Fixtures that several test folders share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vlm_lora_plugin.contract import Family
from vlm_lora_plugin.plugins.manager import get_manager

collect_ignore = ["stranger"]  # a package of its own, which its test installs


@pytest.fixture
def toy() -> Iterator[Family]:
    """The toy family, registered for one test."""
    from toy_family import ToyAdapter

    adapter = ToyAdapter()
    family = get_manager().register(adapter)
    assert family is not None
    yield family
    get_manager().unregister(adapter)
