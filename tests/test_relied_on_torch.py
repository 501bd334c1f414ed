"""What a trace without values relies on in PyTorch, without its promise. A failure here means that PyTorch changed."""

from __future__ import annotations

import pytest
import torch
from relied_on import relies_on
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode


@relies_on("UntypedStorage._cdata")
def test_two_views_of_a_tensor_have_one_storage_address_and_two_tensors_have_two():
    x = torch.empty(4)
    assert x[:2].untyped_storage()._cdata == x.untyped_storage()._cdata
    assert torch.empty(4).untyped_storage()._cdata != x.untyped_storage()._cdata


class _Seen(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.sines = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.sines += func is torch.sin
        return func(*args, **(kwargs or {}))


@relies_on("torch.autograd.graph._engine_run_backward")
def test_the_engine_runs_the_backward_pass_below_function_modes_and_backward_does_not():
    from torch.utils.checkpoint import checkpoint

    def run(backward):
        with _Seen() as seen:
            backward(
                checkpoint(lambda x: torch.sin(x) * x, torch.ones(3, requires_grad=True), use_reentrant=False).sum()
            )
        return seen.sines

    def engine(loss):
        torch.autograd.graph._engine_run_backward(
            (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
        )

    assert run(engine) == 2
    assert run(torch.Tensor.backward) == 1


@relies_on(
    "torch.ops.aten._scaled_dot_product_flash_attention",
    "torch.ops.aten._scaled_dot_product_efficient_attention",
)
@pytest.mark.parametrize("kind", ["flash", "efficient"])
def test_fake_attention_has_the_shapes_and_the_backward_pass_of_cuda(kind):
    with FakeTensorMode():
        q, k, v = (torch.empty(2, 4, 128, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        if kind == "flash":
            out, logs, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)
        else:
            out, logs, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
        out.sum().backward()
    assert out.shape == q.shape == q.grad.shape
    assert (logs.shape, logs.dtype) == ((2, 4, 128), torch.float32)


@relies_on("torch.ops.aten._index_put_impl_", "torch.ops.aten._unsafe_index")
def test_operations_on_indices_take_them_second():
    for overload in (
        torch.ops.aten._index_put_impl_.default,
        torch.ops.aten._unsafe_index.Tensor,
        torch.ops.aten.index.Tensor,
        torch.ops.aten.index_put.default,
    ):
        assert overload._schema.arguments[1].name == "indices"


def test_a_fake_mode_leaves_real_tensors_real_where_it_is_put_aside():
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(torch.ones(2), FakeTensor)
        with unset_fake_temporarily():
            assert torch.ones(2).tolist() == [1.0, 1.0]
