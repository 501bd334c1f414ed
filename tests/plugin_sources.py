"""Plugins for tests of discovery: the source of an adapter's module, and its description in this process."""

from __future__ import annotations

from torch import nn

from vlm_lora_plugin.contract import Family
from vlm_lora_plugin.recipe import Recipe
from vlm_lora_plugin.vocabulary import Hardware

ADAPTER = """
    from vlm_lora_plugin import hookimpl
    from vlm_lora_plugin.contract import Family, Patch
    from vlm_lora_plugin.vocabulary import Component

    @hookimpl
    def describe_family():
        return Family(
            name="{name}",
            title="{name}",
            model_types=("{name}",),
            presets={{"lora": {{"components": {{"language": "lora"}}}}}},
            default_preset="lora",
            recognises=lambda folder: (folder / "{name}").exists(),
            architecture="toy_family:architecture",
            load_model="toy_family:load_model",
            load_processor="toy_family:load_processor",
        )
"""
RECIPE = Recipe(rules=[{"component": "language", "means": "lora"}])
HARDWARE = Hardware(gpus=1, gpu_memory=24)


def adapter(name):
    return ADAPTER.format(name=name)


def model_of(kind):
    model = nn.Linear(1, 1)
    model.config = type("Config", (), {"model_type": kind})()
    return model


def family_of(name):
    return Family(
        name=name,
        title=name,
        model_types=(name,),
        presets={"lora": {}},
        default_preset="lora",
        recognises=lambda folder: False,
        architecture="toy_family:architecture",
        load_model="toy_family:load_model",
        load_processor="toy_family:load_processor",
    )
