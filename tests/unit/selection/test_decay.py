"""``optimizer.decay: upstream`` decays what the Trainer of transformers 4.32 decayed."""

from __future__ import annotations

import pytest
from torch import nn

from vlm_lora_plugin import get_manager
from vlm_lora_plugin.names import canonical_name
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.prepared.injection import inject
from vlm_lora_plugin.selection.resolve import resolve_selection

ALL = dict.fromkeys(("vision", "aligner", "language", "embeddings", "head"), "full")
RECIPES = {"everything": {"components": ALL}, "the default": {}, "DoRA": {"lora": {"use_dora": True}}}


def tiny(family):
    if family == "xcomposer":
        from vlm_lora_xcomposer.tiny import tiny_model
    elif family == "omnilmm":
        from vlm_lora_omnilmm.tiny import tiny_model
    else:
        from vlm_lora_monkey.tiny import tiny_model
    return tiny_model()


def upstreams(model: nn.Module) -> set[str]:
    """By walking the modules from the top, as that Trainer does; its list of norms held ``nn.LayerNorm`` alone."""

    def below(module: nn.Module) -> list[str]:
        names = [
            f"{name}.{rest}"
            for name, child in module.named_children()
            for rest in below(child)
            if not isinstance(child, nn.LayerNorm)
        ]
        return [*names, *module._parameters]

    return {canonical_name(name) for name in below(model) if "bias" not in name}


@pytest.mark.parametrize(
    ("family", "kind"),
    [(family, kind) for family in ("monkey", "omnilmm", "xcomposer") for kind in RECIPES][:-1],  # DoRA is refused there
)
def test_each_family_decays_as_upstream(family, kind):
    description = get_manager().family(family)
    model = tiny(family)
    written = {"preset": description.default_preset, "optimizer": {"decay": "upstream"}, **RECIPES[kind]}
    recipe = resolve_recipe(written, description)
    selection = resolve_selection(model, description, recipe)
    wanted = upstreams(inject(model, selection, recipe))

    assert {p.name for p in selection.parameters if p.weight_decay} == selection.names & wanted
    if kind == "everything":
        vectors = [p.name for p in selection.parameters if p.weight_decay and len(p.shape) == 1]
        norms = {"monkey": "transformer.ln_f.weight", "omnilmm": "model.norm.weight", "xcomposer": "model.norm.weight"}
        assert norms[family] in vectors


def test_the_default_decays_matrices_alone():
    description = get_manager().family("monkey")
    recipe = resolve_recipe({"preset": "lora+llm"}, description)
    selection = resolve_selection(tiny("monkey"), description, recipe)
    assert all((p.weight_decay > 0) == (len(p.shape) > 1) for p in selection.parameters)
    assert any(len(p.shape) == 1 for p in selection.parameters)
