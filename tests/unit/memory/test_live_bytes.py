"""Live bytes: storages count from the operation that makes them until nothing holds them."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vlm_lora_plugin.errors import PlanError
from vlm_lora_plugin.memory.live_bytes import LiveBytes, Use

CPU = torch.device("cpu")
FLOATS = 4 * 1024


@pytest.fixture
def live():
    return LiveBytes(CPU)


@pytest.fixture
def floats():
    """1,024 floats without values."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        x = torch.empty(1024)
    return mode, x


def test_a_result_counts_until_its_last_name_is_gone(live, floats):
    mode, x = floats
    with mode, live:
        y = x + 1
        view = y[:10]
        assert live.bytes == FLOATS
        del y
        assert live.bytes == FLOATS  # the view holds the storage
        del view
    assert live.bytes == 0
    assert live.peak.bytes == FLOATS


def test_what_the_backward_pass_needs_stays_until_it_has_run(live, floats):
    mode, x = floats
    with mode:
        weight = torch.nn.Parameter(torch.empty(1024))
        with live:
            loss = (x * weight).exp().sum()
            assert live.bytes == FLOATS + 4  # the product is gone, its exponential is saved
            loss.backward()
            del loss
    assert live.uses() == {Use("start"): FLOATS}  # the gradient


def test_the_peak_names_phase_component_and_operation(live, floats):
    mode, x = floats
    with mode, live:
        live.phase, live.component = "forward", "vision"
        y = x + 1
        live.phase, live.component = "backward", "head"
        z = torch.cat([y, y])
    assert live.peak.bytes == 3 * FLOATS
    assert (live.peak.phase, live.peak.component) == ("backward", "head")
    assert live.peak.operation == "aten.cat.default"
    assert live.peak.uses == {Use("forward", "vision"): FLOATS, Use("backward", "head"): 2 * FLOATS}
    assert z.shape == (2048,)


def test_integers_are_real_and_decide_shapes(live, floats):
    mode, x = floats
    ids = torch.tensor([[3, 7, 3, 7, 7]])
    with mode, live:
        places = (ids == 7).nonzero()
        chosen = x[:5][(ids == 7)[0]]
        assert torch.arange(5).tolist() == [0, 1, 2, 3, 4]
    assert places.tolist() == [[0, 1], [0, 3], [0, 4]]
    assert chosen.shape == (3,)


def test_one_tensor_under_two_names_counts_once(live, floats):
    _, x = floats
    live.add(x, Use("frozen weights"))
    live.add(x.view(32, 32), Use("frozen weights"))
    assert live.uses() == {Use("frozen weights"): FLOATS}


def test_an_operation_whose_shape_depends_on_values_is_named(live, floats):
    mode, x = floats
    with mode, live, pytest.raises(PlanError, match=r"aten\.nonzero.*depends on values"):
        (x > 0).nonzero()


def test_an_operation_that_asks_for_a_value_is_named(live, floats):
    mode, x = floats
    with mode, live, pytest.raises(PlanError, match=r"_local_scalar_dense"):
        x.sum().item()


def test_the_curve_has_one_point_an_operation_and_its_top_is_the_peak(live, floats):
    mode, x = floats
    with mode, live:
        for _ in range(3):
            x = x * 2
    assert [(number, size // FLOATS) for number, _, size in live.curve] == [(1, 1), (2, 2), (3, 2)]
    assert live.peak.bytes == 2 * FLOATS
