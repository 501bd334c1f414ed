import pytest


@pytest.mark.adapter_contract("sketch", model="vlm_lora_sketch.modeling:write_tiny")
def test_sketch_keeps(promise):
    promise.check()
