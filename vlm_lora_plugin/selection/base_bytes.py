"""A digest over every byte of the weights that a checkpoint was trained beside, as they are stored.

Tensors are hashed with XXH3 while they are read from their files, in a thread beside the one that converts them. A
parameter remembers the digest of what it was read from for as long as it is not changed; of one that came from
elsewhere, the values in memory are hashed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import torch
import xxhash

from vlm_lora_plugin.names import canonical_name
from vlm_lora_plugin.selection.layout import component_of

if TYPE_CHECKING:
    from types import TracebackType

    from torch import nn

    from vlm_lora_plugin.vocabulary import Component

_REMEMBERED = "_vlm_lora_stored"
"""Attribute of a parameter: the :class:`_Stored` that it was read from, its version and its address then."""


class StoredTensor(NamedTuple):
    """What is known of a tensor in a file: the name of its dtype, and the XXH3-128 of its bytes as hex."""

    dtype: str
    digest: str


class _Remembered(NamedTuple):
    stored: StoredTensor
    version: int  # torch counts every change in place
    address: int


class StoredBytes:
    """Hashes tensors in a thread of its own while others are read: ``with StoredBytes() as stored: ...``."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._waiting: dict[str, Future[StoredTensor]] = {}

    def __enter__(self) -> StoredBytes:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread."""
        self._pool.shutdown(cancel_futures=kind is not None)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Hash a tensor as it lies in its file; it must not change until :meth:`found` is asked."""
        self._waiting[name] = self._pool.submit(_hashed, tensor)

    def found(self) -> dict[str, StoredTensor]:
        """Wait for the rest and return what was found, by name."""
        return {name: future.result() for name, future in self._waiting.items()}


def remember(parameters: Mapping[str, torch.Tensor], stored: Mapping[str, StoredTensor]) -> None:
    """Note on each parameter what it was read from."""
    for name, found in stored.items():
        parameter = parameters[name]
        setattr(parameter, _REMEMBERED, _Remembered(found, parameter._version, parameter.data_ptr()))


def byte_digests(
    model: nn.Module, components: Iterable[Component], leave_out: Collection[str], rounded_to: str | None = None
) -> dict[str, str] | None:
    """Return component -> ``dtype:digest`` over names, shapes and every byte of its weights.

    Args:
        model: The base model, or the prepared one around it.
        components: The family's.
        leave_out: Canonical names that do not count: what is trained or drawn anew, and PEFT's.
        rounded_to: Name of a dtype: hash the values in memory as they are in it, not what they were read from.

    Returns:
        The digests, 32 hexadecimal digits each; None where weights are sharded over processes and nobody read them
        from their files, or where ``rounded_to`` would tell nothing, because memory holds less.
    """
    parts: defaultdict[str, list[tuple[str, tuple[int, ...], StoredTensor]]] = defaultdict(list)
    known = tuple(components)
    for memory_name, parameter in model.named_parameters():
        name = canonical_name(memory_name)
        component = component_of(name, known)
        if component is None or name in leave_out:
            continue
        stored = _of_memory(parameter, rounded_to) if rounded_to else _of_file(parameter) or _of_memory(parameter)
        if stored is None:
            return None
        parts[component.name].append((name, tuple(getattr(parameter, "ds_shape", parameter.shape)), stored))
    return {name: _combined(tensors) for name, tensors in sorted(parts.items())}


def byte_differences(stored: Mapping[str, str] | None, own: Mapping[str, str] | None) -> list[str]:
    """Return the components whose weights differ in a byte; those stored in different dtypes cannot be compared."""
    if stored is None or own is None:
        return []
    pairs = {name: (stored.get(name, ""), own.get(name, "")) for name in stored.keys() | own.keys()}
    return sorted(name for name, (one, other) in pairs.items() if one != other and dtype_of(one) == dtype_of(other))


def dtype_of(digest: str) -> str:
    """Return the dtype in a component's digest, several joined by ``+``."""
    return digest.partition(":")[0]


def _of_file(parameter: torch.Tensor) -> StoredTensor | None:
    noted: _Remembered | None = getattr(parameter, _REMEMBERED, None)
    if noted is None:
        return None
    unchanged = (parameter._version, parameter.data_ptr()) == (noted.version, noted.address)
    return noted.stored if unchanged or hasattr(parameter, "ds_id") else None


def _of_memory(parameter: torch.Tensor, rounded_to: str | None = None) -> StoredTensor | None:
    if hasattr(parameter, "ds_id"):  # empty here: it is sharded
        return None
    tensor = parameter.detach()
    if rounded_to is not None and tensor.is_floating_point():
        dtype: torch.dtype = getattr(torch, rounded_to)
        if tensor.dtype not in (dtype, torch.float32):
            return None
        tensor = tensor.to(dtype)
    return _hashed(tensor)


def _hashed(tensor: torch.Tensor) -> StoredTensor:
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return StoredTensor(str(tensor.dtype).removeprefix("torch."), xxhash.xxh3_128_hexdigest(values.numpy().data))


def _combined(tensors: Iterable[tuple[str, tuple[int, ...], StoredTensor]]) -> str:
    every = sorted(tensors)
    dtypes = "+".join(sorted({stored.dtype for _, _, stored in every}))
    lines = "".join(f"{name} {list(shape)} {stored.dtype} {stored.digest}\n" for name, shape, stored in every)
    return f"{dtypes}:{xxhash.xxh3_128_hexdigest(lines.encode())}"
