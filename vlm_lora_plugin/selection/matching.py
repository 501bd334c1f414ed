"""Which parameters and linear layers one rule matches, and the refusal of a rule whose conditions do nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_lora_plugin.errors import SelectionError, listed
from vlm_lora_plugin.names import ancestors

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import Rule
    from vlm_lora_plugin.selection.layout import Layout

_WHY = "Conditions narrow a rule together; one without effect is most often a slip."


@dataclass(frozen=True)
class Match:
    """What a rule matches.

    Attributes:
        rule: The rule.
        parameters: Names of the parameters that fulfil all its conditions.
        named_layers: Linear layers among them that its ``pattern`` or ``module_types`` names themselves, rather
            than through a module around them.
    """

    rule: Rule
    parameters: frozenset[str]
    named_layers: frozenset[str]


@dataclass(frozen=True)
class _Condition:
    """One alternative of a condition: how to call it, and the paths it matches."""

    text: str
    paths: frozenset[str]

    def covers(self, name: str) -> bool:
        return not self.paths.isdisjoint((name, *ancestors(name)))


def match_rule(layout: Layout, rule: Rule) -> Match:
    """Apply all conditions of a rule.

    Raises:
        SelectionError: A condition matches nothing in the model or nothing together with the others, or the
            rule matches nothing at all. (A component that the model lacks may be frozen all the same.)
    """
    patterns = [_Condition(f"The pattern '{text}'", frozenset(layout.hits(text))) for text in rule.pattern]
    types = [_Condition(f"The module type {name}", frozenset(layout.of_type(name))) for name in rule.module_types]
    layers = [
        _Condition(f"The range of layers {text}", frozenset(layout.blocks_in(text, rule.component)))
        for text in rule.layers
        if rule.component is not None
    ]
    excluded = [_Condition(f"The exclusion '{text}'", frozenset(layout.hits(text))) for text in rule.exclude]
    conditions = [group for group in (patterns, types, layers) if group]
    own = layout.parameters if rule.component is None else layout.members.get(rule.component, ())
    names = [name for name in own if all(any(one.covers(name) for one in group) for group in conditions)]
    if not names and (conditions or rule.means != "frozen"):
        raise _matches_nothing(layout, rule, own, conditions)
    for condition in (*(one for group in conditions for one in group), *excluded):
        if not any(condition.covers(name) for name in names):
            raise _without_effect(condition, rule, layout)
    left = frozenset(name for name in names if not any(one.covers(name) for one in excluded))
    if names and not left:
        raise SelectionError(
            f"The rule {describe(rule)} matches no parameter of this model: its exclusions leave nothing of it",
            fix="Narrow `exclude`, or remove the rule.",
        )
    direct = frozenset().union(*(one.paths for one in (*patterns, *types)))
    weights = {name.removesuffix(".weight") for name in left if name.endswith(".weight")}
    return Match(rule, left, frozenset(weights & set(layout.layers) & direct))


def describe(rule: Rule) -> str:
    """Return a rule as it would stand in a recipe, for messages."""
    parts = {
        "component": rule.component,
        "pattern": ", ".join(rule.pattern),
        "layers": ",".join(rule.layers),
        "module_types": ", ".join(rule.module_types),
        "exclude": ", ".join(rule.exclude),
        "means": rule.means,
        "group": rule.group,
    }
    return f"{{{', '.join(f'{key}: {value}' for key, value in parts.items() if value)}}}"


def _matches_nothing(
    layout: Layout, rule: Rule, own: Iterable[str], conditions: Sequence[Sequence[_Condition]]
) -> SelectionError:
    where = f"the component {rule.component}" if rule.component else "this model"
    alone = [
        f"{condition.text} alone matches {_some(layout, condition)}" for group in conditions for condition in group
    ]
    populated = [name for name, members in layout.members.items() if members]
    return SelectionError(
        f"The rule {describe(rule)} matches no parameter of this model",
        why=f"{'; '.join(alone)}, but {where} has none that fulfils all conditions." if alone and own else _WHY,
        fix=f"Components with parameters: {', '.join(populated)}.",
    )


def _without_effect(condition: _Condition, rule: Rule, layout: Layout) -> SelectionError:
    return SelectionError(
        f"{condition.text} matches nothing of the rule {describe(rule)}",
        why=_WHY,
        fix=f"It matches only {_some(layout, condition)}. Remove it, or correct the other conditions.",
    )


def _some(layout: Layout, condition: _Condition) -> str:
    return listed([name for name in layout.parameters if condition.covers(name)], most=3)
