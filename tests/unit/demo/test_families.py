"""Which family's demo runs."""

from __future__ import annotations

import pytest

from vlm_lora_plugin.demo.demo_job import run
from vlm_lora_plugin.errors import AdapterError
from vlm_lora_plugin.plugins.manager import get_manager


def test_an_unknown_family_is_refused_with_those_that_have_a_demo(tmp_path):
    with pytest.raises(AdapterError, match=r"(?s)no demo of 'omnilm'.*monkey, omnilmm") as caught:
        run(tmp_path, family_name="omnilm")

    demos = [family.name for family in get_manager().families().values() if family.test_support.write_tiny_model]
    assert all(name in str(caught.value) for name in demos)
    assert not list(tmp_path.iterdir())


def test_a_family_without_a_demo_is_refused(tmp_path, toy):
    with pytest.raises(AdapterError, match=f"no demo of '{toy.name}'"):
        run(tmp_path, family_name=toy.name)
