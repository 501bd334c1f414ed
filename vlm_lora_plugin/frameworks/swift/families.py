"""Which of Swift's model types and templates stand for which family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lora_plugin.errors import SwiftError
from vlm_lora_plugin.plugins.manager import get_manager

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Family


def types_of(family: Family) -> tuple[str, ...]:
    """Return the Swift model types that stand for a family, its own first; for a fallback only that one."""
    others = () if family.fallback else family.swift_model_types
    return (family.name, *(name for name in others if name != family.name))


def own_types() -> dict[str, Family]:
    """Return Swift model type -> family, for every family whose adapter works."""
    return {name: family for family in get_manager().working_families().values() for name in types_of(family)}


def family_of_type(model_type: str) -> Family:
    """Return the family behind a Swift model type.

    Raises:
        SwiftError: It is none of ours.
    """
    try:
        return own_types()[model_type]
    except KeyError:
        raise SwiftError(
            f"Swift's model type '{model_type}' belongs to no family of vlm-lora-plugin",
            fix=f"Use --model_type {' or '.join(sorted(own_types()))}, or leave it out.",
        ) from None


def template_of(family: Family) -> str:
    """Return the name of a family's template in Swift."""
    return _private(family)


def _private(family: Family) -> str:
    return f"vlm_lora_{family.name}"
