"""From a recipe's rules to exact names.

Works on a freshly loaded model, also one on the meta device: only names, shapes and module types are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm_lora_plugin.contract import Architecture, Family
from vlm_lora_plugin.errors import ModelError, SelectionError, listed, nearest
from vlm_lora_plugin.names import is_injected
from vlm_lora_plugin.parallel.sharding import full_numel, full_shape
from vlm_lora_plugin.patterns import Matcher
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.selection.layout import Layout
from vlm_lora_plugin.selection.matching import Match, describe, match_rule
from vlm_lora_plugin.selection.no_effect import check_rates, check_targets
from vlm_lora_plugin.selection.trace import RuleTrace, SelectionTrace
from vlm_lora_plugin.selection.trainables import Trainable, TrainableSet
from vlm_lora_plugin.vocabulary import Component, Kind

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.recipe import Recipe, Rule


def resolve_selection(model: nn.Module, family: Family, recipe: Recipe) -> TrainableSet:
    """Work out which parameters learn; see :func:`trace_selection`, which also tells what became of each rule."""
    return trace_selection(model, family, recipe).trainables


def trace_selection(model: nn.Module, family: Family, recipe: Recipe) -> SelectionTrace:
    """Work out which parameters learn, by asking the family's adapter for its rules.

    Of all rules that match a parameter the last one decides; what no rule matches is frozen. ``full`` trains
    a parameter. ``lora`` trains LoRA that the base model carries itself; it puts PEFT LoRA on a linear layer
    that (a) a rule's ``pattern`` or ``module_types`` matches itself, (b) ``lora.target_modules`` names for its
    component, or (c) the family's list names, in a component without LoRA of its own; it leaves everything
    else frozen. A parameter shared by two modules counts under its first name.

    Args:
        model: The base model, without PEFT layers, on any device.
        family: The family that owns it.
        recipe: The resolved recipe.

    Returns:
        Every parameter that will learn, PEFT's that do not exist yet included, and what each rule did.

    Raises:
        AdapterError: A function of the family plugin failed, or answered what does not describe the model.
        ModelError: The model already has PEFT layers.
        RecipeError: A rate or decay has no effect.
        SelectionError: A condition, rule or target matches nothing or nothing that can learn that way, a
            parameter belongs to no component, or nothing learns at all.
    """
    if is_injected(model):
        raise ModelError(
            "The model already has PEFT layers, so its parameters no longer have their published names",
            fix="Give the freshly loaded model.",
        )
    manager = get_manager()
    architecture = manager.architecture(family, model)
    rules = manager.select_trainable(family, model, recipe).rules
    return _Resolution(Layout(model, architecture), architecture, recipe, rules).trace(family)


class _Resolution:
    """The rules applied to a layout; every rule is checked by itself before the last one wins."""

    def __init__(self, layout: Layout, architecture: Architecture, recipe: Recipe, rules: Sequence[Rule]) -> None:
        self._layout, self._architecture, self._recipe = layout, architecture, recipe
        self._is_table = Matcher(architecture.fixed_tables, what="The pattern of computed tables")
        self._targets = self._listed_targets()
        self._matches = [self._match(rule) for rule in rules]
        check_targets(recipe, layout, self._matches)
        check_rates(recipe, layout, self._matches)
        self._winners = {
            name: index for index, match in enumerate(self._matches) for name in match.parameters
        }  # later rules overwrite earlier ones

    def trace(self, family: Family) -> SelectionTrace:
        trained: list[tuple[int, Trainable]] = []
        targets: list[str] = []
        for name, tensor in self._layout.parameters.items():
            index = self._winners.get(name)
            if index is None or self._matches[index].rule.means == "frozen" or self._is_fixed(name):
                continue
            rule, component = self._matches[index].rule, self._layout.component_of[name]
            layer = name.removesuffix(".weight")
            if name in self._layout.builtin:
                trained.append((index, self._trainable(name, full_shape(tensor), component, rule, "builtin_lora")))
            elif rule.means == "full":
                self._check_floating(name)
                trained.append((index, self._trainable(name, full_shape(tensor), component, rule, "full")))
            elif layer != name and layer in self._layers(self._matches[index]):
                targets.append(layer)
                for part, shape in self._lora_shapes(layer):
                    trained.append((index, self._trainable(f"{layer}.{part}", shape, component, rule, "peft_lora")))
        self._check_result(trained, targets)
        totals = tuple(
            (component, sum(full_numel(self._layout.parameters[name]) for name in names))
            for component, names in self._layout.members.items()
        )
        learning = tuple(entry for _, entry in trained)
        trainables = TrainableSet(family.name, self._architecture, learning, tuple(targets), totals)
        return SelectionTrace(
            trainables, tuple(self._rule_trace(index, trained) for index in range(len(self._matches)))
        )

    def _rule_trace(self, index: int, trained: Sequence[tuple[int, Trainable]]) -> RuleTrace:
        match = self._matches[index]
        matched = [name for name in self._layout.parameters if name in match.parameters]
        return RuleTrace(
            rule=match.rule,
            of_recipe=match.rule in self._recipe.rules,
            matched=tuple(matched),
            lost=tuple((name, self._winners[name]) for name in matched if self._winners[name] != index),
            trains=tuple(entry.name for at, entry in trained if at == index),
        )

    def _check_result(self, trained: Sequence[object], targets: Sequence[str]) -> None:
        if not trained:
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

    def _match(self, rule: Rule) -> Match:
        match = match_rule(self._layout, rule)
        if not match.parameters:
            return match
        if rule.means == "lora" and not self._layers(match) and self._layout.builtin.isdisjoint(match.parameters):
            raise SelectionError(
                f"The rule {describe(rule)} finds no LoRA and no linear layer to put it on",
                fix="Name linear layers: lora: {target_modules: {<component>: [<suffix>, ...]}}, or all-linear.",
            )
        if rule.means == "full" and all(self._is_fixed(name) for name in match.parameters):
            raise SelectionError(
                f"The rule {describe(rule)} matches only computed tables: {listed(sorted(match.parameters))}",
                fix="Set train_fixed_tables: true if they are really to be trained.",
            )
        return match

    def _layers(self, match: Match) -> set[str]:
        """Return the linear layers that a rule with ``lora`` puts PEFT LoRA on, if no later rule decides."""
        own = match.parameters - self._layout.builtin
        return {layer for layer in match.named_layers | self._targets if f"{layer}.weight" in own}

    def _listed_targets(self) -> set[str]:
        """Linear layers that the recipe's or the family's lists name."""
        layout = self._layout
        targets: set[str] = set()
        for component in self._architecture.components:
            own = self._recipe.lora.target_modules.get(component.name)
            for suffix in own or ():
                if not layout.layers_named([suffix], component.name):
                    raise SelectionError(
                        f"lora.target_modules.{component.name} names '{suffix}', which is not a linear layer of it",
                        fix=nearest(suffix, layout.suffixes(component.name)),
                    )
            if own is None and not layout.has_builtin(component.name):
                own = component.target_modules
            targets |= layout.layers_named(own or (), component.name)
        return targets

    def _is_fixed(self, name: str) -> bool:
        return not self._recipe.train_fixed_tables and self._is_table(name)

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
        decays = len(shape) > 1 if optimizer.decay == "matrices" else self._layout.decays_upstream(name)
        return Trainable(
            name=name,
            shape=shape,
            component=component.name,
            means=rule.means,
            kind=kind,
            group=rule.group or f"{component.name}.{rule.means}",
            learning_rate=optimizer.rate(component.name, rule.means, rule.group),
            weight_decay=optimizer.weight_decay_of(component.name, rule.means, rule.group) if decays else 0.0,
        )
