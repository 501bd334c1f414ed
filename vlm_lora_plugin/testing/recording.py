"""What modules take and return in one run of a model: the stages that reference numbers are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Calls = dict[str, list[torch.Tensor]]
"""Name -> what was recorded, call by call."""


@contextmanager
def recorded(outputs: Mapping[str, nn.Module], inputs: Mapping[str, nn.Module] | None = None) -> Iterator[Calls]:
    """Record modules for as long as the ``with`` lasts.

    Args:
        outputs: Name -> a module whose returned tensors are kept.
        inputs: Name -> a module of which the first argument is kept, or the one of that name.
    """
    calls: Calls = {name: [] for name in (*outputs, *(inputs or {}))}

    def output_of(name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            calls[name].append(output)

        return keep

    def input_of(name: str) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            calls[name].append(args[0] if args else kwargs[name])

        return keep

    handles = [module.register_forward_hook(output_of(name)) for name, module in outputs.items()]
    for name, module in (inputs or {}).items():
        handles.append(module.register_forward_pre_hook(input_of(name), with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def numbered(prefix: str, blocks: nn.Module) -> dict[str, nn.Module]:
    """Return a module's children as ``prefix`` and their number."""
    return {f"{prefix}{index}": block for index, block in enumerate(blocks.children())}
