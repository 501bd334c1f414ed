"""Operations that take memory inside, for as long as they run, which a count of tensors does not see."""

from __future__ import annotations

INNER_MEMORY = {
    "aten::convolution": "cuDNN's workspace",
    "aten::convolution_backward": "cuDNN's workspace",
    "aten::_scaled_dot_product_flash_attention_backward": "an fp32 sum of the queries' gradient, and one row of it",
    "aten::_scaled_dot_product_efficient_attention_backward": "an fp32 sum of the queries' gradient",
    "aten::embedding_dense_backward": "sorted indices",
    "aten::_index_put_impl_": "sorted indices",
    "aten::index_put_": "sorted indices",
    "aten::index_put": "sorted indices",
    "aten::sort": "a workspace as large as what is sorted",
    "aten::topk": "a workspace",
    "aten::cumsum": "a workspace",
    "aten::mm": "cuBLAS' workspace, one for the process",
    "aten::addmm": "cuBLAS' workspace, one for the process",
    "aten::bmm": "cuBLAS' workspace, one for the process",
}
"""Name in its schema -> what it takes; see ``docs/how-to/does-it-fit.md``. The reserve stands in for it."""
