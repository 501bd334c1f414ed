from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from vlm_lora_plugin.parallel.optimizer import held_parameters, keeps_fp32

ONE, TWO, THREE = (nn.Parameter(torch.zeros(size)) for size in (1, 2, 3))
FAST, SLOW = {"lr": 1.0, "params": [torch.zeros(3)]}, {"lr": 0.1, "params": [torch.zeros(3)]}


def held(optimizer):
    return [(tuple(parameter.shape), group["lr"]) for parameter, group in held_parameters(optimizer)]


def test_a_plain_optimizer_holds_its_groups():
    optimizer = torch.optim.AdamW([{"params": [ONE], "lr": 1.0}, {"params": [TWO, THREE], "lr": 0.1}])

    assert held(optimizer) == [((1,), 1.0), ((2,), 0.1), ((3,), 0.1)]


def test_flat_buffers_of_zero_1_and_2_stand_for_the_parameters_in_them():
    zero = SimpleNamespace(bit16_groups=[[ONE, TWO], [THREE]], param_groups=[FAST, SLOW])

    assert held(SimpleNamespace(optimizer=zero, param_groups=[FAST, SLOW])) == [((1,), 1.0), ((2,), 1.0), ((3,), 0.1)]


def test_sub_groups_of_zero_3_belong_to_the_group_they_were_split_from():
    zero = SimpleNamespace(
        fp16_groups=[[ONE], [TWO], [THREE]], sub_group_to_group_id={0: 0, 1: 0, 2: 1}, param_groups=[FAST, SLOW]
    )

    assert held(zero) == [((1,), 1.0), ((2,), 1.0), ((3,), 0.1)]


def test_16_bit_is_kept_in_fp32_only_where_an_optimizer_does_so():
    half = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    assert keeps_fp32(ONE)
    assert not keeps_fp32(half)

    half._hp_mapping = None  # DeepSpeed's mark on every parameter that it trains

    assert keeps_fp32(half)
