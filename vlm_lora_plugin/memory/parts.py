"""Which part of the model runs, in the forward pass, the backward pass, and where a block is computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vlm_lora_plugin.names import canonical_name
from vlm_lora_plugin.selection.layout import component_of

if TYPE_CHECKING:
    from vlm_lora_plugin.memory.live_bytes import LiveBytes
    from vlm_lora_plugin.vocabulary import Component


@contextmanager
def parts_noted(model: nn.Module, components: Sequence[Component], live: LiveBytes) -> Iterator[None]:
    """Keep ``live.component`` at the part of ``model`` that runs, and let go of it afterwards."""
    handles: list[Any] = []
    for module, part in _outermost(model, components):
        waiting: list[str] = []
        handles.append(module.register_forward_pre_hook(partial(_enter, live, part, waiting)))
        handles.append(module.register_forward_hook(partial(_leave, live, part, waiting), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _outermost(model: nn.Module, components: Sequence[Component]) -> Iterator[tuple[nn.Module, str]]:
    """Yield the modules with which a part begins: those whose parent is of another part, or only holds a list."""
    known = tuple(components)
    waiting: list[tuple[str, nn.Module, str]] = [("", model, "")]
    while waiting:
        name, module, around = waiting.pop()
        holder = isinstance(module, (nn.ModuleList, nn.ModuleDict))
        part = component_of(f"{canonical_name(name)}.x", known) if name else None
        here = part.name if part is not None else around
        if here and here != around and not holder:
            yield module, here
        inside = around if holder else here
        waiting += [(f"{name}.{child}" if name else child, below, inside) for child, below in module.named_children()]


def _enter(live: LiveBytes, part: str, waiting: list[str], module: nn.Module, inputs: Any) -> None:
    waiting.append(live.component)
    live.component = part


def _leave(live: LiveBytes, part: str, waiting: list[str], module: nn.Module, inputs: Any, output: Any) -> None:
    live.component = waiting.pop()
    for tensor in _with_gradient(output):
        tensor.register_hook(_arriving(live, part))  # type: ignore[no-untyped-call]


def _arriving(live: LiveBytes, part: str) -> Callable[[torch.Tensor], None]:
    def arrived(_: torch.Tensor) -> None:
        live.component = part

    return arrived


def _with_gradient(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        if output.requires_grad:
            yield output
    elif isinstance(output, (list, tuple)):
        for one in output:
            yield from _with_gradient(one)
    elif isinstance(output, dict):
        yield from _with_gradient(list(output.values()))
