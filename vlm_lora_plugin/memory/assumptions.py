"""What a trace does not see, stated once; each with where it comes from."""

from __future__ import annotations

from vlm_lora_plugin.planning.memory import RESERVE_GIB

USABLE = 23.6 / 24
"""Share of a device's nominal memory that a process can allocate: a 24 GB card reports 24,564 MiB and keeps some."""

ASSUMPTIONS = (
    f"Reserve of {RESERVE_GIB} GiB: CUDA context, workspaces of cuBLAS and cuDNN, rounding and fragmentation of the "
    "allocator; between the 1.5 and 2 GiB that users report.",
    f"Usable: {USABLE:.1%} of a device's nominal memory.",
    "Attention is flash attention in 16 bit without a mask, else the memory-efficient one.",
    "AdamW is fused: it takes nothing beside its two moments.",
)
"""For every plan."""

OF_DDP = "DistributedDataParallel copies gradients into buckets, 4 bytes for each element that learns."
OF_ZERO = (
    "Under ZeRO, weights, gradients and AdamW's states are those of the ZeRO paper (arXiv:1910.02054, section 3.1), "
    "and ZeRO-3 holds 200 million gathered elements beside them; activations are traced in one process."
)
