"""From the weight files of a model folder into a model, tensor by tensor and strictly.

A model is built on the meta device first; every tensor is then read, converted and put in place by itself,
so that the weights are never in memory twice. Nothing that a file holds is executed.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from vlm_lora_plugin.errors import WeightsError, listed
from vlm_lora_plugin.outside.json_text import read_json
from vlm_lora_plugin.parallel.agreement import of_first_rank, require_agreement
from vlm_lora_plugin.parallel.sharding import partition
from vlm_lora_plugin.parallel.zero3 import start_communication, zero3_configuration
from vlm_lora_plugin.patterns import Matcher
from vlm_lora_plugin.selection.base_bytes import StoredBytes, remember

PARTITIONED_BYTES = 2**28
"""Bytes of weights that each rank holds whole at a time while they are spread over the ranks."""

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = tuple(f"{name}.index.json" for name in WEIGHT_FILES)


def has_weights(folder: Path) -> bool:
    """Return whether a folder has any weight file, whole or not."""
    return any((folder / name).is_file() for name in (*WEIGHT_FILES, *INDEX_FILES))


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that hold a folder's weights: one, or the shards that an index names.

    Safetensors win over pickles where a folder has both.

    Raises:
        WeightsError: There are none, the index is broken, or a shard is missing.
    """
    for single, index in zip(WEIGHT_FILES, INDEX_FILES, strict=True):
        if (folder / index).is_file():
            shards = sorted(set(_weight_map(folder / index).values()))
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise WeightsError(
                    f"{folder} lacks shards that {index} names: {listed(missing)}", fix="Download the folder again."
                )
            return tuple(folder / shard for shard in shards)
        if (folder / single).is_file():
            return (folder / single,)
    raise WeightsError(
        f"{folder} has no weights",
        why=f"Looked for {', '.join(WEIGHT_FILES)} and their index files.",
        fix="Download the whole folder.",
    )


def tensor_names(folder: Path) -> frozenset[str]:
    """Return the names of all tensors of a folder, from the index or the headers.

    Raises:
        WeightsError: As :func:`weight_files`, or a file is broken.
    """
    for index in INDEX_FILES:
        if (folder / index).is_file():
            return frozenset(_weight_map(folder / index))
    return frozenset(name for file in weight_files(folder) for name in _shapes(file))


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of all tensors of a folder, from the headers of its files; no tensor is read.

    Raises:
        WeightsError: As :func:`weight_files`, or a file is broken.
    """
    return {name: shape for file in weight_files(folder) for name, shape in _shapes(file).items()}


def load_weights(
    model: nn.Module,
    folder: Path,
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    ignore: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> tuple[str, ...]:
    """Fill a model that was built on the meta device from a folder's weight files.

    Names and shapes are compared before the first tensor is read. Each tensor is hashed as it is stored while others
    are read, and its parameter remembers the digest. Where ZeRO-3 is on, parameters are spread over
    the ranks as they are read; no rank ever holds the whole model.

    Args:
        model: The model; every parameter is replaced by one on ``device``, ``requires_grad`` is kept. Buffers are
            the caller's to fill, before this.
        folder: The model folder.
        dtype: Dtype of the floating-point parameters.
        device: Where they go.
        ignore: Regular expressions for whole names of tensors that are dropped.
        optional: Regular expressions for whole names; the parameters that one of them matches may be missing
            from the files, but only all together.

    Returns:
        Names of the optional parameters that are missing, in the model's order. They are allocated and hold
        nothing yet.

    Raises:
        WeightsError: Tensors are missing, extra or of another shape, a file is broken or holds code, or, under
            ZeRO-3, a buffer was not filled.
    """
    files = weight_files(folder)
    found = _found(files, ignore)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    absent = _absent_sets(wanted, found, optional)
    _check(folder, wanted, found, absent)
    configuration = zero3_configuration()
    if configuration is not None:
        _load_sharded(model, files, wanted, absent, dtype, configuration)
        return absent
    with StoredBytes() as stored:
        for file in files:
            for name, tensor in _tensors(file):
                if name in wanted:
                    stored.add(name, tensor)
                    _put(model, name, tensor.to(device, dtype if tensor.is_floating_point() else None, copy=True))
        remember(dict(model.named_parameters()), stored.found())
    for name in absent:
        _put(model, name, torch.empty(wanted[name], dtype=dtype, device=device))
    return absent


def _load_sharded(
    model: nn.Module,
    files: Sequence[Path],
    wanted: Mapping[str, tuple[int, ...]],
    absent: Sequence[str],
    dtype: torch.dtype,
    configuration: Mapping[str, Any],
) -> None:
    """Load under ZeRO-3: rank 0 reads, and every rank keeps its part of each tensor.

    At most ``PARTITIONED_BYTES``, or one larger tensor, is whole on a rank at a time.

    Raises:
        TrainingError: No processes were started, or they load different models.
        WeightsError: A buffer was not filled.
    """
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if empty:
        raise WeightsError(
            f"Buffers of this {type(model).__name__} hold nothing yet: {listed(empty)}",
            why="Under ZeRO-3 they follow the parameters to their device as soon as those are loaded.",
            fix="The family's loader must fill them before it calls load_weights.",
        )
    start_communication()
    sizes = {name: list(shape) for name, shape in wanted.items()}
    require_agreement({"tensors": sizes, "missing": list(absent), "dtype": str(dtype)}, "load the same model")
    reads = torch.distributed.get_rank() == 0
    waiting: list[nn.Parameter] = []

    def flush() -> None:
        if waiting:
            partition(waiting, configuration)
            waiting.clear()

    def put(name: str, tensor: torch.Tensor | None) -> None:
        kind = dtype if model.get_parameter(name).is_floating_point() else model.get_parameter(name).dtype
        whole = torch.empty(wanted[name], dtype=kind) if tensor is None else tensor.to(kind, copy=True)
        if waiting and sum(other.nbytes for other in waiting) + whole.nbytes > PARTITIONED_BYTES:
            flush()
        waiting.append(_put(model, name, whole))

    with StoredBytes() as stored:
        for file in files:
            source: Iterable[tuple[str, torch.Tensor | None]]
            source = _tensors(file) if reads else ((name, None) for name in _shapes(file))
            for name, tensor in source:
                if name in wanted:
                    if tensor is not None:
                        stored.add(name, tensor)
                    put(name, tensor)
        for name in absent:
            put(name, torch.zeros(wanted[name], dtype=dtype))
        flush()
        remember(dict(model.named_parameters()), of_first_rank(stored.found()))
    for buffer in model.buffers():  # the engine leaves a model that was loaded like this where it is
        buffer.data = buffer.data.to(next(model.parameters()).device)


def _found(files: Iterable[Path], ignore: Sequence[str]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    ignored = Matcher(ignore)
    for file in files:
        shapes = {name: shape for name, shape in _shapes(file).items() if not ignored(name)}
        twice = sorted(found.keys() & shapes.keys())
        if twice:
            raise WeightsError(f"{file} holds tensors that another shard holds too: {listed(twice)}")
        found.update(shapes)
    return found


def _absent_sets(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], optional: Sequence[str]
) -> tuple[str, ...]:
    absent = set()
    for pattern in optional:
        members = set(Matcher(pattern).among(wanted))
        if members.isdisjoint(found):
            absent |= members
    return tuple(name for name in wanted if name in absent)


def _check(
    folder: Path,
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    absent: Sequence[str],
) -> None:
    missing = [name for name in wanted if name not in found and name not in set(absent)]
    extra = [name for name in found if name not in wanted]
    misshapen = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    problems = {"missing": missing, "extra": extra, "of another shape": misshapen}
    if any(problems.values()):
        raise WeightsError(
            f"The tensors in {folder} do not fit the model. "
            + " ".join(f"{what.capitalize()}: {listed(names)}." for what, names in problems.items() if names),
            why="A model with other weights than its config describes gives wrong answers without a warning.",
            fix="Check that config.json belongs to these weights and that all of them were downloaded.",
        )


def _put(model: nn.Module, name: str, tensor: torch.Tensor) -> nn.Parameter:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    parameter = nn.Parameter(tensor, requires_grad=getattr(module, leaf).requires_grad)
    setattr(module, leaf, parameter)
    return parameter


def _weight_map(index: Path) -> dict[str, str]:
    try:
        names: dict[str, str] = read_json(index)["weight_map"]
        if any(Path(shard).name != shard for shard in names.values()):
            raise ValueError("a shard lies outside of the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is not an index of shards: {error!r}", fix="Download it again.") from None
    return names


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    if file.suffix == ".safetensors":
        with _opened(file) as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return {name: tuple(tensor.shape) for name, tensor in _unpickled(file).items()}


def _tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    if file.suffix == ".safetensors":
        with _opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118  a safetensors handle is not a mapping
                yield name, tensors.get_tensor(name)
    else:
        yield from _unpickled(file).items()


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is broken or cut short: {error}", fix="Download it again.") from None


def _unpickled(file: Path) -> dict[str, torch.Tensor]:
    """Map a ``.bin`` file into memory; its tensors are read from disk when they are used."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{file} holds more than tensors, or is broken: {str(error).splitlines()[0]}",
            why="Unpickling anything else would run code from the file.",
            fix="Use a folder with safetensors files.",
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise WeightsError(
            f"{file} is broken or cut short, or was saved before PyTorch 1.6: {str(error).splitlines()[0]}",
            fix="Download it again, or convert it to safetensors.",
        ) from None
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsError(f"{file} is not a state dict: it does not map names to tensors")
    return content
