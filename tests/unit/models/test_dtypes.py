from __future__ import annotations

import pytest
import torch

from vlm_lora_plugin.models.dtypes import to_weight_dtype


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_input_takes_the_weights_dtype(device):
    x = torch.ones(2, dtype=torch.bfloat16, device=device)

    assert to_weight_dtype(x, torch.ones(1, device=device)).dtype == torch.float32


def test_equal_dtypes_are_free():
    x = torch.ones(2)

    assert to_weight_dtype(x, torch.ones(1)) is x


def test_autocast_decides_by_itself():
    x = torch.ones(2, dtype=torch.bfloat16)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert to_weight_dtype(x, torch.ones(1)) is x


def test_quantised_weights_take_any_dtype():
    x = torch.ones(2, dtype=torch.bfloat16)

    assert to_weight_dtype(x, torch.ones(1, dtype=torch.uint8)) is x
