"""All ranks train the same, or none trains.

No framework compares what its processes train: DistributedDataParallel averages the gradients of different
parameters where their number and shapes happen to agree, and ZeRO crashes without a name or hangs where not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm_lora_plugin.documents import differences
from vlm_lora_plugin.errors import TrainingError, listed
from vlm_lora_plugin.plugins.manager import get_manager

if TYPE_CHECKING:
    from vlm_lora_plugin.selection.manifest import Manifest

LIBRARIES = ("torch", "transformers", "peft", "deepspeed")
"""Distributions of which every rank must have the same version, besides those of the adapter and the policies."""

BY_HAND = "registered by hand"


def in_group() -> bool:
    """Return whether this process was started as one of a group, of which it may be the only one."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def several_ranks() -> bool:
    """Return whether this process trains together with others."""
    return in_group() and torch.distributed.get_world_size() > 1


def check_ranks_agree(manifest: Manifest, **more: object) -> None:
    """Compare what all ranks are about to train; every rank must come here before an engine is made.

    Compared are the manifest (parameters with shapes and means, recipe, base config, dtype) and the versions of
    adapter, policies and libraries.

    Args:
        manifest: This rank's.
        more: Further values by what they are, in which ranks must agree.

    Raises:
        TrainingError: A rank differs from rank 0; raised on all ranks alike.
    """
    if several_ranks():
        require_agreement({**_statement(manifest), **more}, "train the same")


def require_agreement(statement: Mapping[str, object], what: str) -> None:
    """Compare something on all ranks; every rank must come here.

    Args:
        statement: Topic -> value, which JSON can hold, the same on all ranks.
        what: What the ranks are about to do alike, ``train the same``.

    Raises:
        TrainingError: A rank differs from rank 0; raised on all ranks alike.
    """
    if not several_ranks():
        return
    own = json.loads(json.dumps(statement, default=str))
    digests = _everyone(hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest())
    if len(set(digests)) > 1:
        raise _disagreement(_everyone(own), what)


def check_same_checkpoint(checkpoint: str | None) -> None:
    """Check that all ranks resume from the same checkpoint; every rank must come here.

    Raises:
        TrainingError: They do not, for instance because they do not share the output folder.
    """
    if not several_ranks():
        return
    found = _everyone(None if checkpoint is None else Path(checkpoint).name)
    if len(set(found)) > 1:
        picked = ", ".join(f"rank {rank}: {name or 'none'}" for rank, name in enumerate(found))
        raise TrainingError(
            f"The ranks would resume from different checkpoints ({picked})",
            why="They would train from different weights and steps.",
            fix="Let all machines see the same output folder, or copy the checkpoint to each of them.",
        )


def done_by_some(action: Callable[[], None], *, acts: bool) -> None:
    """Do something on some ranks, and raise on all of them what it raises on one; every rank must come here.

    Args:
        action: What to do.
        acts: Whether this rank does it.

    Raises:
        Exception: What the lowest rank raised whose action failed.
    """
    problem: Exception | None = None
    if acts:
        try:
            action()
        except Exception as error:
            if not several_ranks():
                raise
            problem = error
    if several_ranks():
        for found in _everyone(problem):
            if found is not None:
                raise found


def of_first_rank(value: Any) -> Any:
    """Return rank 0's value on every rank; every rank must come here."""
    return _everyone(value)[0] if several_ranks() else value


def ranks_of_this_node() -> tuple[int, int]:
    """Return this process's number among those of its machine that train together, and how many they are.

    A launcher says so by ``LOCAL_RANK`` and ``LOCAL_WORLD_SIZE``; without it all ranks count as one machine's.
    """
    if not several_ranks():
        return 0, 1
    size = int(os.environ.get("LOCAL_WORLD_SIZE", torch.distributed.get_world_size()))
    return torch.distributed.get_rank() % size, size


def gathered_on_node(value: Any) -> list[Any]:
    """Return the values of this machine's ranks, in their order; every rank of the job must come here."""
    if not several_ranks():
        return [value]
    own, size = ranks_of_this_node()
    first = torch.distributed.get_rank() - own
    return _everyone(value)[first : first + size]


def _statement(manifest: Manifest) -> dict[str, Any]:
    """Return everything of a manifest in which ranks must agree, and the versions."""
    found = get_manager().records()
    plugins = {
        f"{'policy' if record.policy else 'adapter'} {record.name}": record.distribution
        for record in found
        if record.policy or record.name == manifest.family
    }
    return {
        "parameters": {p.name: f"{p.means} ({p.kind}) {list(p.shape)}" for p in manifest.parameters},
        "recipe": {key: value for key, value in manifest.recipe.items() if key != "origin"},
        "base": {"family": manifest.family, "dtype": manifest.dtype, **manifest.base_config},
        "base weights": dict(manifest.base_weights or {}),
        "every byte of the base": dict(manifest.base_bytes or {}),
        "versions": {
            "vlm-lora-plugin": manifest.plugin_version,
            f"adapter {manifest.family}": BY_HAND,
            **plugins,
            **_versions(),
        },
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _everyone(value: Any) -> list[Any]:
    """Return the values of all ranks, in their order."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _disagreement(statements: Sequence[Mapping[str, Any]], what: str) -> TrainingError:
    reference = statements[0]
    alike: dict[str, list[int]] = {}
    for rank, statement in enumerate(statements):
        if statement != reference:
            alike.setdefault(json.dumps(statement, sort_keys=True), []).append(rank)
    lines = []
    for text, ranks in alike.items():
        other = json.loads(text)
        parts = []
        for topic, value in reference.items():
            nested = isinstance(value, Mapping)
            found = differences(value, other[topic], "" if nested else topic)
            if found:
                parts.append(f"{topic} {listed(found)}" if nested else listed(found))
        who = f"Rank {ranks[0]}" if len(ranks) == 1 else f"Ranks {listed(map(str, ranks))}"
        lines.append(f"{who} against rank 0 (rank 0 / rank {ranks[0]}): {'; '.join(parts)}.")
    return TrainingError(
        f"The ranks are not about to {what}.\n" + "\n".join(lines),
        why="Gradients of different parameters would be averaged, or the ranks would wait for each other forever.",
        fix="Start every rank with the same recipe, data, model folder and installed versions.",
    )
