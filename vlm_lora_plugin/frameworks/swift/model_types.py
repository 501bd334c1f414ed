"""What Swift is told of each family: model type, parts, template. All of it comes from ``describe_family``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swift.model import MODEL_MAPPING, ModelGroup, ModelMeta, register_model, register_model_arch
from swift.model.model_arch import MultiModelKeys
from swift.template import TemplateMeta, register_template

from vlm_lora_plugin.frameworks.swift.families import template_of, types_of
from vlm_lora_plugin.frameworks.swift.loader import VlmLoraLoader
from vlm_lora_plugin.frameworks.swift.template import VlmLoraTemplate

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.vocabulary import ComponentName


def register_family(family: Family) -> None:
    """Register a family's parts, template and model types, over what Swift has under these names."""
    register_model_arch(
        MultiModelKeys(
            template_of(family),
            language_model=_prefixes(family, "language"),
            aligner=_prefixes(family, "aligner"),
            vision_tower=_prefixes(family, "vision"),
        ),
        exist_ok=True,
    )
    register_template(
        TemplateMeta(
            template_of(family),
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
            template=template_of(family),
            model_arch=template_of(family),
            # Without an architecture Swift would take the family for every folder that names none.
            architectures=list(builtin.architectures) if builtin is not None else [template_of(family)],
            is_multimodal=True,
            tags=["vision"],
        )
        register_model(meta, exist_ok=True)


def _prefixes(family: Family, name: ComponentName) -> list[str]:
    return [prefix for part in family.components if part.name == name for prefix in part.prefixes]


def _groups(builtin: ModelMeta | None) -> list[object]:
    """Return the published names of a type that is replaced, so that Swift goes on finding it by name."""
    return [ModelGroup(list(group.models)) for group in builtin.model_groups] if builtin is not None else []
