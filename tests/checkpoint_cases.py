"""Toy models that have learnt something, for the tests of what is saved and loaded."""

from __future__ import annotations

import json

import torch
from toy_family import toy_batch, toy_model

from vlm_lora_plugin import prepare
from vlm_lora_plugin.checkpoint.files import MANIFEST
from vlm_lora_plugin.selection.manifest import sealed

WITH_PEFT = "lora+llm-lora"
WITHOUT_PEFT = "lora"


def tuned(preset=WITH_PEFT, **options):
    """A prepared model whose every trained parameter has moved."""
    model = prepare(toy_model(**options), preset)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in model.named_trainables().values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def logits(model):
    with torch.no_grad():
        return model(**toy_batch()).logits


def edit_manifest(folder, change):
    """Change a manifest together with its digest, as another version of the package would have written it."""
    path = folder / MANIFEST
    document = json.loads(path.read_text())
    change(document)
    path.write_text(sealed(document))
