"""What CUDA does where the CPU does something else, for a trace whose tensors claim to be on the CPU.

PyTorch's graph for the backward pass cannot be run on tensors that claim to be on a CUDA device where there is none.
So a trace stays on the CPU, and these rules make the operations that save other tensors on CUDA.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_HALF = (torch.bfloat16, torch.float16)

# fmt: off
FP32_UNDER_AUTOCAST = (
    "acos", "asin", "binary_cross_entropy_with_logits", "cdist", "cosh", "cosine_embedding_loss",
    "cosine_similarity", "cross_entropy", "cumprod", "cumsum", "dist", "erfinv", "exp", "expm1", "group_norm",
    "hinge_embedding_loss", "huber_loss", "interpolate", "kl_div", "l1_loss", "layer_norm", "log", "log10", "log1p",
    "log2", "log_softmax", "logsumexp", "margin_ranking_loss", "mse_loss", "multi_margin_loss",
    "multilabel_margin_loss", "native_layer_norm", "nll_loss", "norm", "pdist", "poisson_nll_loss", "pow", "prod",
    "reciprocal", "renorm", "rsqrt", "sinh", "smooth_l1_loss", "soft_margin_loss", "softmax", "softplus", "sum",
    "tan", "triplet_margin_loss", "__pow__", "__rpow__",
)
# fmt: on
"""Functions that CUDA's autocast computes in fp32 (PyTorch's documentation of ``torch.amp``, "CUDA Ops that can
autocast to float32"); the CPU's leaves most of them in 16 bit. ``rms_norm`` is not among them."""

MOST_HEAD_DIM = 256
"""Flash attention takes heads up to this size."""

MASK_ALIGNMENT = 16
"""The mask of memory-efficient attention is filled up to a multiple of this in its last dimension."""


class CudaRules(TorchFunctionMode):
    """While active, calls of PyTorch's functions save what they would save on a CUDA device.

    - Dropout keeps a mask of one byte an element.
    - ``scaled_dot_product_attention`` is flash attention in 16 bit without a mask, else the memory-efficient one: the
      first two that PyTorch tries.
    - Autocast computes :data:`FP32_UNDER_AUTOCAST` in fp32.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch's, or what stands in for it."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func in _DROPOUTS:
            return _dropout(*args, **kwargs)
        if func in _FP32 and torch.is_autocast_enabled("cpu"):
            args = tuple(_in_fp32(value) for value in args)
            kwargs = {name: _in_fp32(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _named_functions() -> frozenset[Any]:
    owners = (torch, F, torch.Tensor, torch.special)
    return frozenset(getattr(owner, name) for name in FP32_UNDER_AUTOCAST for owner in owners if hasattr(owner, name))


_FP32 = _named_functions()
_DROPOUTS = frozenset({F.dropout, torch.dropout})


def _in_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in _HALF else value


def _dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, **names: Any
) -> torch.Tensor:
    if not names.get("train", training) or p == 0:
        return input
    return torch.native_dropout(input, p, True)[0]


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    aten = torch.ops.aten
    if attn_mask is None and query.dtype in _HALF and query.shape[-1] <= MOST_HEAD_DIM:
        pad = -query.shape[-1] % 8
        if pad:
            query, key, value = (F.pad(tensor, (0, pad)) for tensor in (query, key, value))
        out = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
        return torch.narrow(out, -1, 0, out.shape[-1] - pad) if pad else cast(torch.Tensor, out)
    bias = None if attn_mask is None else _bias(attn_mask, query, key)
    efficient = aten._scaled_dot_product_efficient_attention
    out = efficient(query, key, value, bias, True, dropout_p, is_causal, scale=scale)[0]
    return cast(torch.Tensor, out)


def _bias(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return a mask as memory-efficient attention takes it: floats, filled up, over all heads."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), float("-inf"))
    length = mask.shape[-1]
    if length % MASK_ALIGNMENT:
        mask = F.pad(mask, (0, -length % MASK_ALIGNMENT))[..., :length]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
