"""A trace on the CPU saves what CUDA would save."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from vlm_lora_plugin.memory.cuda_rules import CudaRules
from vlm_lora_plugin.memory.live_bytes import LiveBytes

CPU = torch.device("cpu")


def saved(function, *shapes, dtype=torch.float32, cuda=True, autocast=False):
    """Bytes that a function keeps for the backward pass beside its output, and the output."""
    live = LiveBytes(CPU)
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = [torch.empty(shape, dtype=dtype, requires_grad=True) for shape in shapes]
        with live, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if cuda:
                with CudaRules():
                    out = function(*inputs)
            else:
                out = function(*inputs)
    return live.bytes - out.untyped_storage().nbytes(), out


def test_dropout_keeps_one_byte_an_element():
    assert saved(lambda x: F.dropout(x, 0.5), (1000,))[0] == 1000
    assert saved(lambda x: F.dropout(x, 0.5), (1000,), cuda=False)[0] == 4000


@pytest.mark.parametrize("call", [lambda x: F.dropout(x, 0.5, training=False), lambda x: F.dropout(x, 0.0)])
def test_dropout_that_drops_nothing_keeps_nothing(call):
    live, out = saved(call, (1000,))
    assert (live, out.shape) == (-4000, (1000,))  # the output is the input


def test_a_layer_norm_under_autocast_runs_in_fp32():
    norm = lambda x: F.layer_norm(x, (64,))  # noqa: E731
    assert saved(norm, (100, 64), dtype=torch.bfloat16, autocast=True)[1].dtype == torch.float32
    assert saved(norm, (100, 64), dtype=torch.bfloat16, autocast=True, cuda=False)[1].dtype == torch.bfloat16


def attention(mask=None, **more):
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **more)


QKV = [(2, 4, 128, 64)] * 3


def test_attention_in_16_bit_without_a_mask_keeps_one_fp32_number_a_query():
    kept, out = saved(attention(is_causal=True), *QKV, dtype=torch.bfloat16)
    assert out.shape == QKV[0]
    assert kept == pytest.approx(2 * 4 * 128 * 4, abs=64)  # the log of the sum; two random numbers


def test_attention_with_a_mask_keeps_the_mask_in_floats():
    mask = torch.ones(2, 1, 128, 128, dtype=torch.bool)
    kept, out = saved(attention(mask), *QKV, dtype=torch.bfloat16)
    assert out.shape == QKV[0]
    assert kept == pytest.approx(2 * 128 * 128 * 2 + 2 * 4 * 128 * 4, abs=64)


def test_a_mask_is_filled_up_to_a_multiple_of_16():
    mask = torch.ones(2, 1, 100, 100, dtype=torch.bool)
    kept, _ = saved(attention(mask), *[(2, 4, 100, 64)] * 3, dtype=torch.bfloat16)
    assert kept == pytest.approx(2 * 100 * 112 * 2 + 2 * 4 * 128 * 4, abs=64)


def test_heads_of_an_odd_size_are_filled_up_to_a_multiple_of_8():
    kept, out = saved(attention(), *[(2, 4, 128, 60)] * 3, dtype=torch.bfloat16)
    assert out.shape == (2, 4, 128, 60)
    filled = 3 * 2 * 4 * 128 * 64 * 2
    assert kept == pytest.approx(filled + 2 * 4 * 128 * 4, abs=64)


def test_rules_hold_in_the_backward_pass_of_checkpointed_blocks():
    from torch.utils.checkpoint import checkpoint

    live = LiveBytes(CPU)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(1000, requires_grad=True)
        with live, CudaRules():
            loss = checkpoint(lambda x: F.dropout(x * 2, 0.5), x, use_reentrant=False).sum()
            torch.autograd.graph._engine_run_backward(
                (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
            )
    assert x.grad.shape == (1000,)
