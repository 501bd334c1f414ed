"""A model as rules see it: parameter names, components, linear layers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

from torch import nn

from vlm_lora_plugin.contract import Architecture
from vlm_lora_plugin.errors import SelectionError, listed, nearest
from vlm_lora_plugin.names import ancestors
from vlm_lora_plugin.patterns import Matcher
from vlm_lora_plugin.vocabulary import Component, ComponentName

if TYPE_CHECKING:
    import torch

ALL_LINEAR = "all-linear"
"""Stands for every linear layer of a component in ``lora.target_modules``."""


class Layout:
    """Names, components and linear layers of a base model; reads no weight.

    Attributes:
        parameters: Name -> parameter; one that two modules share stands under its first name.
        component_of: Name -> the part of the model it belongs to.
        members: Component -> names of its parameters, in the model's order.
        paths: Every parameter name, and every module name with a parameter below it.
        layers: Name -> linear layer whose weight is one of ``parameters``.
        dead_layers: Linear layers of ``nn.MultiheadAttention``, which reads their weight and never calls them.
        builtin: Names of parameters that are LoRA inside the base model.
        types: Name of a module with parameters -> class names of the module and of its bases below ``nn.Module``.

    Raises:
        SelectionError: A parameter belongs to no component of the architecture.
    """

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        self._components = architecture.components
        self.parameters: dict[str, torch.Tensor] = dict(model.named_parameters())
        self.component_of: dict[str, Component] = {}
        self.members: dict[ComponentName, list[str]] = {name: [] for name in architecture.component_names}
        homeless = []
        for name in self.parameters:
            component = component_of(name, architecture.components)
            if component is None:
                homeless.append(name)
                continue
            self.component_of[name] = component
            self.members[component.name].append(name)
        if homeless:
            raise SelectionError(
                f"These parameters belong to no component of this {type(model).__name__}: {listed(homeless)}",
                why="A rule could neither train nor freeze them.",
                fix="Load the model with vlm_lora_plugin.load(folder), or add their prefix in Family.architecture.",
            )
        modules = dict(model.named_modules())
        self.layers: dict[str, nn.Linear] = {
            name: module
            for name, module in modules.items()
            if isinstance(module, nn.Linear) and f"{name}.weight" in self.parameters
        }
        self.dead_layers = {
            name for name in self.layers if isinstance(modules[name.rpartition(".")[0]], nn.MultiheadAttention)
        }
        self.paths: set[str] = set(self.parameters).union(*(ancestors(name) for name in self.parameters))
        self.types: dict[str, frozenset[str]] = {
            name: frozenset(base.__name__ for base in type(module).__mro__ if base not in (nn.Module, object))
            for name, module in modules.items()
            if name in self.paths
        }
        self._norms = {name for name, module in modules.items() if isinstance(module, nn.LayerNorm)}
        self.builtin = set().union(
            *(
                Matcher(part.builtin_lora, what=f"The pattern of built-in LoRA of {part.name}").among(
                    self.members[part.name]
                )
                for part in architecture.components
                if part.builtin_lora
            )
        )

    def decays_upstream(self, name: str) -> bool:
        """Return whether the Trainer of upstream's scripts decays a parameter, one that LoRA adds included.

        It leaves out what ``nn.LayerNorm`` holds and every name with ``bias`` in it (transformers 4.32,
        ``Trainer.get_decay_parameter_names``), and knows neither Qwen's nor InternLM2's RMSNorm.
        """
        return "bias" not in name and name.rpartition(".")[0] not in self._norms

    def has_builtin(self, component: ComponentName) -> bool:
        """Return whether this component carries LoRA of its own in this model."""
        return any(name in self.builtin for name in self.members[component])

    def layers_named(self, suffixes: Iterable[str], component: ComponentName) -> set[str]:
        """Return the linear layers of a component that any of the suffixes, or ``all-linear``, names.

        ``all-linear`` leaves out what LoRA cannot or need not be put on: layers inside
        ``nn.MultiheadAttention``, and the linear layers that built-in LoRA is made of.
        """
        members = set(self.members[component])
        own = {name for name in self.layers if f"{name}.weight" in members}
        found: set[str] = set()
        for suffix in suffixes:
            if suffix == ALL_LINEAR:
                found |= {name for name in own - self.dead_layers if f"{name}.weight" not in self.builtin}
            else:
                found |= {name for name in own if name == suffix or name.endswith(f".{suffix}")}
        return found

    def suffixes(self, component: ComponentName) -> list[str]:
        """Return the last one and two parts of the names of a component's linear layers."""
        layers = [layer.split(".") for layer in self.layers_named([ALL_LINEAR], component)]
        return sorted({".".join(parts[-count:]) for parts in layers for count in (1, 2)})

    def of_type(self, name: str) -> set[str]:
        """Return the modules whose class, or a base of it, has this name.

        Linear layers that built-in LoRA is made of are left out: they belong to it, as in ``all-linear``.

        Raises:
            SelectionError: There are none.
        """
        own = {path for path in self.layers if f"{path}.weight" in self.builtin}
        found = {path for path, types in self.types.items() if name in types} - own
        if not found:
            raise SelectionError(
                f"No module of this model is of the type {name}",
                fix=nearest(name, sorted(set().union(*self.types.values()))),
            )
        return found

    def blocks_in(self, layers: str, component: ComponentName) -> list[str]:
        """Return a component's repeating blocks within a range, ``3``, ``0-3`` or ``10-``, in the model's order.

        Raises:
            SelectionError: The component has no such blocks.
        """
        pattern = next((part.blocks for part in self._components if part.name == component), None)
        blocks = Matcher(pattern, what=f"The pattern of blocks of {component}").among(self.types) if pattern else []
        if not blocks:
            raise SelectionError(
                f"`layers: {layers}` counts blocks, and the component {component} has no repeating ones",
                fix="Remove `layers`, or write a pattern.",
            )
        first, dash, last = layers.partition("-")
        start, stop = int(first), int(last or (len(blocks) - 1 if dash else first))
        if max(start, stop) >= len(blocks):
            raise SelectionError(
                f"`layers: {layers}` goes beyond the {len(blocks)} blocks of the component {component}",
                fix=f"They are counted from 0 to {len(blocks) - 1}: {listed(blocks, most=2)}. To the last: {start}-."
                if start < len(blocks)
                else f"They are counted from 0 to {len(blocks) - 1}: {listed(blocks, most=2)}.",
            )
        return blocks[start : stop + 1]

    def hits(self, pattern: str) -> set[str]:
        """Return the paths that a regular expression matches as a whole.

        Raises:
            SelectionError: There are none.
            RecipeError: It is not a regular expression, or takes longer than a second.
        """
        found = set(Matcher(pattern).among(sorted(self.paths)))
        if not found:
            raise SelectionError(
                f"The pattern '{pattern}' matches no parameter or module of this model",
                why="A pattern must match a whole name; a rule without effect is most often a slip.",
                fix=self._similar(pattern),
            )
        return found

    def _similar(self, pattern: str) -> str:
        plain = re.sub(r"\\d[+*]?|\[0-9\][+*]?", "0", pattern)
        plain = re.sub(r"\.[*+]|[\\^$()?]", "", plain).strip(".")
        known = sorted({re.sub(r"\.\d+", ".0", path) for path in self.paths})
        close = get_close_matches(plain, known, cutoff=0.5)
        if close:
            return nearest(plain, close)
        return f"Its names begin with {', '.join(sorted({path.split('.')[0] for path in self.paths}))}."


def component_of(name: str, components: Iterable[Component]) -> Component | None:
    """Return the component with the longest prefix that equals the name or is followed by a dot."""
    owners = [
        (len(prefix), component)
        for component in components
        for prefix in component.prefixes
        if name == prefix or name.startswith(f"{prefix}.")
    ]
    return max(owners, key=lambda owner: owner[0])[1] if owners else None
