"""What Swift is told of each family: model type and template at the start, parts once the run's folder is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swift.model import MODEL_MAPPING, ModelGroup, ModelMeta, register_model, register_model_arch
from swift.model.model_arch import MultiModelKeys
from swift.template import TemplateMeta, register_template

from vlm_lora_plugin.frameworks.swift.families import template_of, types_of
from vlm_lora_plugin.frameworks.swift.loader import VlmLoraLoader
from vlm_lora_plugin.frameworks.swift.template import VlmLoraTemplate

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Architecture, Family
    from vlm_lora_plugin.vocabulary import ComponentName


def register_family(family: Family) -> None:
    """Register a family's template and model types, over what Swift has under these names; the parts come later."""
    register_model_arch(MultiModelKeys(template_of(family)), exist_ok=True)
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


def register_parts(family: Family, architecture: Architecture) -> None:
    """Tell Swift the parts of the model that this run is about, under all of the family's model types."""
    parts = MultiModelKeys(
        template_of(family),
        language_model=_prefixes(architecture, "language"),
        aligner=_prefixes(architecture, "aligner"),
        vision_tower=_prefixes(architecture, "vision"),
    )
    register_model_arch(parts, exist_ok=True)
    for model_type in types_of(family):
        MODEL_MAPPING[model_type].model_arch = parts


def _prefixes(architecture: Architecture, name: ComponentName) -> list[str]:
    component = architecture.component(name)
    return [] if component is None else list(component.prefixes)


def _groups(builtin: ModelMeta | None) -> list[object]:
    """Return the published names of a type that is replaced, so that Swift goes on finding it by name."""
    return [ModelGroup(list(group.models)) for group in builtin.model_groups] if builtin is not None else []
