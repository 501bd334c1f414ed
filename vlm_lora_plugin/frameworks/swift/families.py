"""What Swift is told of each family: model type, parts, template. All of it comes from ``describe_family``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lora_plugin.frameworks.swift.versions import SwiftError
from vlm_lora_plugin.plugins.manager import get_manager

if TYPE_CHECKING:
    from swift.model import ModelMeta

    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.vocabulary import ComponentName


def types_of(family: Family) -> tuple[str, ...]:
    """Return the Swift model types that stand for a family, its own first."""
    return (family.name, *(name for name in family.swift_model_types if name != family.name))


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


def register_family(family: Family) -> None:
    """Register a family's parts, template and model types, over what Swift has under these names."""
    from swift.model import MODEL_MAPPING, ModelMeta, register_model, register_model_arch
    from swift.model.model_arch import MultiModelKeys
    from swift.template import TemplateMeta, register_template

    from vlm_lora_plugin.frameworks.swift.loader import VlmLoraLoader
    from vlm_lora_plugin.frameworks.swift.template import VlmLoraTemplate

    register_model_arch(
        MultiModelKeys(
            _private(family),
            language_model=_prefixes(family, "language"),
            aligner=_prefixes(family, "aligner"),
            vision_tower=_prefixes(family, "vision"),
        ),
        exist_ok=True,
    )
    register_template(
        TemplateMeta(
            _private(family),
            prefix=[],
            prompt=["{{QUERY}}"],
            chat_sep=[],
            suffix=[],
            system_prefix=["{{SYSTEM}}"],
            template_cls=VlmLoraTemplate,
        ),
        exist_ok=True,
    )
    for model_type in types_of(family):
        builtin: ModelMeta | None = MODEL_MAPPING.get(model_type)
        meta = ModelMeta(
            model_type,
            model_groups=_groups(builtin),
            loader=VlmLoraLoader,
            template=_private(family),
            model_arch=_private(family),
            # Without an architecture Swift would take the family for every folder that names none.
            architectures=list(builtin.architectures) if builtin is not None else [_private(family)],
            is_multimodal=True,
            tags=["vision"],
        )
        register_model(meta, exist_ok=True)


def template_of(family: Family) -> str:
    """Return the name of a family's template in Swift."""
    return _private(family)


def _private(family: Family) -> str:
    return f"vlm_lora_{family.name}"


def _prefixes(family: Family, name: ComponentName) -> list[str]:
    return [prefix for part in family.components if part.name == name for prefix in part.prefixes]


def _groups(builtin: ModelMeta | None) -> list[object]:
    """Return the published names of a type that is replaced, so that Swift goes on finding it by name."""
    from swift.model import ModelGroup

    return [ModelGroup(list(group.models)) for group in builtin.model_groups] if builtin is not None else []
