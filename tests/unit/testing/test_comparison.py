from __future__ import annotations

import math

import pytest
import torch

from vlm_lora_plugin.testing.comparison import Tolerance, agreement, compare_number, compare_tensors, miss, worst

FP32 = Tolerance(rtol=1e-5, atol=1e-6)


def test_equal_tensors_agree():
    tensor = torch.randn(3, 4)

    assert compare_tensors("x", tensor, tensor.clone(), FP32).share == 0


def test_difference_is_measured_against_rtol_and_atol_together():
    finding = compare_tensors("x", torch.tensor([2.0 + 4.2e-5]), torch.tensor([2.0]), FP32)

    assert finding.error == pytest.approx(4.2e-5, rel=1e-2)
    assert finding.share == pytest.approx(2.0, rel=1e-2)
    assert not finding.passed


def test_a_value_next_to_zero_is_measured_by_its_vector():
    expected = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    ours = expected.clone()
    ours[0, 2] = 5e-6

    finding = compare_tensors("x", ours, expected, FP32)

    assert finding.passed
    assert finding.elementwise == pytest.approx(5.0, rel=1e-3)


def test_other_vectors_do_not_lend_their_size():
    expected = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    ours = expected.clone()
    ours[1, 0] = 5e-6

    assert not compare_tensors("x", ours, expected, FP32).passed


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_a_miss(value):
    assert not compare_tensors("x", torch.tensor([1.0, value]), torch.tensor([1.0, 1.0]), FP32).passed
    assert not compare_number("x", value, 1.0, 1.0, FP32).passed


def test_another_shape_is_a_miss():
    finding = compare_tensors("x", torch.zeros(2, 3), torch.zeros(3, 2), FP32)

    assert not finding.passed
    assert finding.note == "shape [2, 3] instead of [3, 2]"


def test_integers_must_be_equal():
    ids = torch.tensor([1, 2, 3])

    assert compare_tensors("ids", ids, ids.clone(), FP32).passed
    assert compare_tensors("ids", ids, ids + torch.tensor([0, 0, 1]), FP32).note == "1 values differ"


def test_empty_tensors_agree():
    assert compare_tensors("x", torch.zeros(0, 3), torch.zeros(0, 3), FP32).passed


def test_a_cancelled_sum_is_measured_by_its_summands():
    assert compare_number("dot", 1e-3 + 5e-6, 1e-3, 1.0, FP32).passed
    assert not compare_number("dot", 1e-3 + 5e-6, 1e-3, 1e-3, FP32).passed


def test_the_worst_of_a_group_is_named():
    group = [agreement("a", ""), compare_number("b", 1.1, 1.0, 1.0, FP32), miss("c", "gone")]

    assert worst(group[:2], "group").note == "b"
    assert worst(group, "group").note == "c gone"
    assert not worst(group, "group").passed


def test_beyond_the_tolerance_only_what_rounding_explains_passes():
    ours, expected = torch.tensor([2.0 + 1e-4]), torch.tensor([2.0])

    assert not compare_tensors("x", ours, expected, FP32, lambda: torch.tensor([1e-5])).passed
    finding = compare_tensors("x", ours, expected, FP32, lambda: torch.tensor([2e-5]))
    assert finding.is_rounding
    assert finding.stated > 4 > 1 > finding.share
    assert compare_number("x", 2.0 + 1e-4, 2.0, 2.0, FP32, lambda: 2e-5).is_rounding
    assert not compare_number("x", 2.0 + 1e-4, 2.0, 2.0, FP32, lambda: 1e-5).passed


def test_within_the_tolerance_nobody_asks_what_rounding_explains():
    def never():
        raise AssertionError("asked")

    assert compare_tensors("x", torch.ones(2), torch.ones(2), FP32, never).passed
    assert compare_number("x", 1.0, 1.0, 1.0, FP32, never).passed
