"""Fixtures that several test folders share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from durations import pytest_addoption, pytest_collection_modifyitems, pytest_configure  # noqa: F401  # hooks
from hypothesis import HealthCheck, settings
from warm import pytest_sessionfinish  # noqa: F401

from vlm_lora_plugin.contract import Family
from vlm_lora_plugin.plugins.manager import get_manager

# Draws are seeded by each test's own source and nothing is kept between runs: a failure here is a failure everywhere.
settings.register_profile(
    "seeded", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("seeded")

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
