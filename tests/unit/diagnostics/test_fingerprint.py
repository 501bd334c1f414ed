"""What a process compares of a parameter to see whether it moved."""

from __future__ import annotations

import torch

from vlm_lora_plugin.diagnostics.fingerprint import fingerprint, largest, local


def part_of(rank: int) -> torch.Tensor:
    """Ten elements in three parts of four, as ZeRO-3 holds them: only two of the last part are the parameter's."""
    parameter = torch.nn.Parameter(torch.empty(0))
    part = torch.zeros(4)
    part.ds_numel = 4
    if rank == 2:
        part[2:] = float("nan")
    parameter.ds_id, parameter.ds_shape = 0, torch.Size((2, 5))
    parameter.ds_tensor, part.ds_zero_partition_rank = part, rank
    parameter.ds_zero_partition_rank = rank
    return parameter


def test_what_pads_the_last_part_under_zero_3_does_not_count():
    assert [local(part_of(rank)).numel() for rank in range(3)] == [4, 4, 2]
    assert largest(local(part_of(2))) == 0
    assert fingerprint(part_of(2)).tolist() == [[0.0, 0.0]]


def test_a_whole_parameter_is_its_own_part():
    whole = torch.nn.Parameter(torch.ones(2, 3))
    assert local(whole).shape == (2, 3)
    assert fingerprint(whole).tolist() == [[6.0, 6.0]]
