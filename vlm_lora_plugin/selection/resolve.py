"""From a recipe's rules to exact names.

Works on a freshly loaded model, also one on the meta device: only names, shapes and module types are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_lora_plugin.errors import ModelError, SelectionError, listed, nearest
from vlm_lora_plugin.manager import get_manager
from vlm_lora_plugin.selection.layout import Layout
from vlm_lora_plugin.selection.names import ancestors, is_injected
from vlm_lora_plugin.selection.trainables import Trainable, TrainableSet
from vlm_lora_plugin.types import Component, Family, Kind

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.recipe import Recipe, Rule


def resolve_selection(model: nn.Module, family: Family, recipe: Recipe) -> TrainableSet:
    """Work out which parameters learn, by asking the family's adapter for its rules.

    Of all rules that match a parameter the last one decides; what no rule matches is frozen. ``full`` trains
    a parameter. ``lora`` trains LoRA that the base model carries itself; it puts PEFT LoRA on a linear layer
    that (a) a rule's pattern matches by the layer's own name, (b) ``lora.target_modules`` names for its
    component, or (c) the family's list names, in a component without LoRA of its own; it leaves everything
    else frozen. A parameter shared by two modules counts under its first name.

    Args:
        model: The base model, without PEFT layers, on any device.
        family: The family that owns it.
        recipe: The resolved recipe.

    Returns:
        Every parameter that will learn, PEFT's that do not exist yet included.

    Raises:
        ModelError: The model already has PEFT layers.
        SelectionError: A pattern, rule or target matches nothing or nothing that can learn that way, a
            parameter belongs to no component, or nothing learns at all.
    """
    if is_injected(model):
        raise ModelError(
            "The model already has PEFT layers, so its parameters no longer have their published names",
            fix="Give the freshly loaded model.",
        )
    layout = Layout(model, family)
    rules = get_manager().select_trainable(family, model, recipe).rules
    return _Resolution(layout, family, recipe, rules).result()


@dataclass(frozen=True)
class _Match:
    """A rule, the parameters that it matches, and the linear layers that it would put PEFT LoRA on."""

    rule: Rule
    parameters: frozenset[str]
    layers: frozenset[str]


class _Resolution:
    """The rules applied to a layout; every rule is checked by itself before the last one wins."""

    def __init__(self, layout: Layout, family: Family, recipe: Recipe, rules: Sequence[Rule]) -> None:
        self._layout, self._family, self._recipe = layout, family, recipe
        self._targets = self._listed_targets()
        self._matches = [self._match(rule) for rule in rules]

    def result(self) -> TrainableSet:
        parameters: list[Trainable] = []
        targets: list[str] = []
        for name, tensor in self._layout.parameters.items():
            match = next((match for match in reversed(self._matches) if name in match.parameters), None)
            if match is None or match.rule.means == "frozen" or self._is_fixed(name):
                continue
            rule, component = match.rule, self._layout.component_of[name]
            layer = name.removesuffix(".weight")
            if name in self._layout.builtin:
                parameters.append(self._trainable(name, tuple(tensor.shape), component, rule, "builtin_lora"))
            elif rule.means == "full":
                self._check_floating(name)
                parameters.append(self._trainable(name, tuple(tensor.shape), component, rule, "full"))
            elif layer in match.layers and layer != name:
                targets.append(layer)
                for part, shape in self._lora_shapes(layer):
                    parameters.append(self._trainable(f"{layer}.{part}", shape, component, rule, "peft_lora"))
        if not parameters:
            raise SelectionError(
                "The recipe trains nothing at all",
                fix="Give at least one component lora or full, for example components: {language: lora}.",
            )
        dead = [layer for layer in targets if layer in self._layout.dead_layers]
        if dead:
            raise SelectionError(
                f"LoRA cannot be put on {listed(dead)}, inside nn.MultiheadAttention",
                why="That module reads the weight and never calls the layer, so the LoRA would never learn.",
                fix=f"Leave it out (exclude: {re.escape(dead[0])}), or train the component with full.",
            )
        totals = tuple(
            (component, sum(self._layout.parameters[name].numel() for name in names))
            for component, names in self._layout.members.items()
        )
        return TrainableSet(self._family.name, tuple(parameters), tuple(targets), totals)

    def _match(self, rule: Rule) -> _Match:
        layout = self._layout
        hits = set().union(*(layout.hits(pattern) for pattern in rule.pattern))
        excluded = set().union(*(layout.hits(pattern) for pattern in rule.exclude))
        names = set(layout.parameters) if rule.component is None else set(layout.members.get(rule.component, ()))
        if rule.pattern:
            names = {name for name in names if not hits.isdisjoint((name, *ancestors(name)))}
        names = {name for name in names if excluded.isdisjoint((name, *ancestors(name)))}
        weights = {name.removesuffix(".weight") for name in names - layout.builtin if name.endswith(".weight")}
        layers = weights & set(layout.layers) & (hits | self._targets)
        match = _Match(rule, frozenset(names), frozenset(layers))
        self._check(match)
        return match

    def _check(self, match: _Match) -> None:
        layout, rule, what = self._layout, match.rule, _describe(match.rule)
        if not match.parameters and (rule.means != "frozen" or rule.pattern):
            populated = [name for name, members in layout.members.items() if members]
            raise SelectionError(
                f"The rule {what} matches no parameter of this model",
                fix=f"Components with parameters: {', '.join(populated)}.",
            )
        if rule.means == "lora" and not match.layers and layout.builtin.isdisjoint(match.parameters):
            raise SelectionError(
                f"The rule {what} finds no LoRA and no linear layer to put it on",
                fix="Name linear layers: lora: {target_modules: {<component>: [<suffix>, ...]}}, or all-linear.",
            )
        if rule.means == "full" and all(self._is_fixed(name) for name in match.parameters):
            raise SelectionError(
                f"The rule {what} matches only computed tables: {listed(sorted(match.parameters))}",
                fix="Set train_fixed_tables: true if they are really to be trained.",
            )

    def _listed_targets(self) -> set[str]:
        """Linear layers that the recipe's or the family's lists name."""
        layout = self._layout
        targets: set[str] = set()
        for component in self._family.components:
            own = self._recipe.lora.target_modules.get(component.name)
            for suffix in own or ():
                if not layout.layers_named([suffix], component.name):
                    raise SelectionError(
                        f"lora.target_modules.{component.name} names '{suffix}', which is no linear layer of it",
                        fix=nearest(suffix, layout.suffixes(component.name)),
                    )
            if own is None and not layout.has_builtin(component.name):
                own = component.target_modules
            targets |= layout.layers_named(own or (), component.name)
        return targets

    def _is_fixed(self, name: str) -> bool:
        tables = () if self._recipe.train_fixed_tables else self._family.fixed_tables
        return any(re.fullmatch(table, name) for table in tables)

    def _check_floating(self, name: str) -> None:
        dtype = self._layout.parameters[name].dtype
        if not dtype.is_floating_point:
            raise SelectionError(
                f"{name} cannot be trained in full: it is stored as {dtype}",
                fix="Load the model unquantised, or give its component lora.",
            )

    def _lora_shapes(self, layer: str) -> list[tuple[str, tuple[int, ...]]]:
        lora, linear = self._recipe.lora, self._layout.layers[layer]
        shapes: list[tuple[str, tuple[int, ...]]] = [
            ("lora_A.weight", (lora.r, linear.in_features)),
            ("lora_B.weight", (linear.out_features, lora.r)),
        ]
        if lora.use_dora:
            shapes.append(("lora_magnitude_vector", (linear.out_features,)))
        return shapes

    def _trainable(self, name: str, shape: tuple[int, ...], component: Component, rule: Rule, kind: Kind) -> Trainable:
        optimizer = self._recipe.optimizer
        return Trainable(
            name=name,
            shape=shape,
            component=component.name,
            means=rule.means,
            kind=kind,
            group=rule.group or f"{component.name}.{rule.means}",
            learning_rate=optimizer.rate(component.name, rule.means),
            weight_decay=optimizer.decay(component.name, rule.means) if len(shape) > 1 else 0.0,
        )


def _describe(rule: Rule) -> str:
    parts = {"component": rule.component, "pattern": list(rule.pattern), "exclude": list(rule.exclude)}
    inside = ", ".join(f"{key}: {value}" for key, value in parts.items() if value)
    return f"{{{inside}, means: {rule.means}}}"
