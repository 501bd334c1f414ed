"""Short names for the exact content of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch

LENGTH = 16
"""Hexadecimal digits that are kept of each SHA-256."""


def tensor_digest(tensor: torch.Tensor) -> str:
    """Return a digest of a tensor's dtype, shape and every bit of its values."""
    plain = tensor.detach().to("cpu", copy=False).contiguous().reshape(-1)
    content = hashlib.sha256(f"{plain.dtype}{tuple(tensor.shape)}".encode())
    content.update(plain.view(torch.uint8).numpy().data)
    return content.hexdigest()[:LENGTH]


def text_digest(parts: Iterable[str]) -> str:
    """Return a digest of texts in their order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:LENGTH]


def joint_digest(digests: Mapping[str, str]) -> str:
    """Return one digest of named digests, whatever their order."""
    return text_digest(f"{name}={digests[name]}" for name in sorted(digests))
