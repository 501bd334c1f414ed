"""Sketch's answers to the hooks of vlm-lora-plugin."""

import json

from vlm_lora_plugin import hookimpl
from vlm_lora_plugin.contract import Architecture, Component, Family, TrainableSelection
from vlm_lora_plugin.recipe import Rule

COMPONENTS = (
    Component("vision", ("eyes",), target_modules=("proj",)),
    Component("aligner", ("bridge",), target_modules=("bridge",)),
    Component("language", ("model",), target_modules=("q_proj", "v_proj"), blocks=r"model\.layers\.\d+"),
    Component("embeddings", ("model.embed_tokens",)),
    Component("head", ("lm_head",), target_modules=("lm_head",)),
)

PRESETS = {
    "lora": {
        "components": {"aligner": "full"},
        "rules": [{"component": "language", "layers": "1-", "means": "lora", "group": "upper"}],
        "lora": {"r": 4, "lora_alpha": 8},
        "optimizer": {"learning_rate": {"default": 1e-3, "upper": 5e-3}},
        "gradient_checkpointing": {"language": True},
    },
    "eyes": {"components": {"vision": "full", "aligner": "full"}},
}


@hookimpl
def describe_family():
    return Family(
        name="sketch",
        title="Sketch",
        model_types=("sketch_vlm",),
        presets=PRESETS,
        default_preset="lora",
        recognises=recognises,
        architecture=lambda model: Architecture(COMPONENTS, image_only=("eyes", "bridge")),
        load_model="vlm_lora_sketch.modeling:load_model",
        load_processor="vlm_lora_sketch.processing:load_processor",
    )


@hookimpl
def select_trainable(model, recipe):
    # The norms of the language model always learn with its LoRA.
    norms = Rule(component="language", module_types="LlamaRMSNorm", means="full", group="norms")
    trained = any(rule.component == "language" and rule.means == "lora" for rule in recipe.rules)
    return TrainableSelection((*recipe.rules, norms) if trained else recipe.rules)


@hookimpl
def wrap_forward(model, recipe):
    from vlm_lora_plugin.patches import checkpoint_blocks, keep_text_only_trainable

    checkpointed = [checkpoint_blocks(part) for part in COMPONENTS if recipe.gradient_checkpointing.get(part.name)]
    return [keep_text_only_trainable("model", ("eyes", "bridge")), *checkpointed]


def recognises(folder):
    return json.loads((folder / "config.json").read_text("utf-8")).get("model_type") == "sketch_vlm"
