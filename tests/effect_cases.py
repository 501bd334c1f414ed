"""Recipes on the toy family's model without weights, for the tests of keys without effect."""

from __future__ import annotations

import torch
from toy_family import toy_model

from vlm_lora_plugin.job.inspection import inspect_model
from vlm_lora_plugin.planning.resolve import resolve_recipe

LORA = {"r": 4, "lora_alpha": 8.0, "lora_dropout": 0.3, "use_rslora": True, "use_dora": True}
"""Another value than the default of each key of PEFT's LoRA alone."""


def refused(family, document, model=None):
    """Look at a recipe as ``vlm-lora inspect`` does; on the preset ``lora`` unless it names another."""
    with torch.device("meta"):
        outline = toy_model() if model is None else model()
    return inspect_model(outline, "toy", family, resolve_recipe({"preset": "lora", **document}, family))


def look(family, document):
    """Return the recipe as it would be carried out."""
    return refused(family, document).recipe


def nested(key, value):
    """Return a document that sets a dotted key of two parts at most."""
    table, _, name = key.partition(".")
    return {table: {name: value} if name else value}
