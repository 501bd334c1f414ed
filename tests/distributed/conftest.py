"""The tiny models that the jobs of this folder train."""

from __future__ import annotations

import functools

import pytest
from families import FAMILIES


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Write the model of a family, ``tiny_model("omnilmm")``, once, and return its folder."""
    return functools.cache(lambda family: FAMILIES[family].write(tmp_path_factory.mktemp(family) / "model"))


@pytest.fixture(scope="session")
def tiny_monkey(tiny_model):
    """The folder of a Monkey without the tower's LoRA."""
    return tiny_model("monkey")
