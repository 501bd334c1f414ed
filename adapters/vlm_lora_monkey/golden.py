"""Reads Monkey's reference numbers: upstream's config, inputs and recipe names in our own terms."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from vlm_lora_monkey.configuration import MonkeyConfig
from vlm_lora_monkey.modeling import MonkeyForCausalLM
from vlm_lora_plugin.contract import GoldenCase
from vlm_lora_plugin.data.encoding import load_pixels
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import read_config
from vlm_lora_plugin.testing import Calls, numbered, recorded

DEFAULT_VARIANT = "default"  # the other one has LoRA in the language model

_LANGUAGE = ("language", "embeddings", "head")
_WITH_TABLE = {"train_fixed_tables": True}  # upstream trains attn_pool.pos_embed by accident
_POST = {"pattern": [r"transformer\.visual\.ln_post", r"transformer\.visual\.proj"], "means": "full"}

UPSTREAM_RECIPES: dict[str, dict[str, Any]] = {
    "multitask_default_fix_vit": {"preset": "lora+llm", **_WITH_TABLE},
    "multitask_fix_vit_false": {"components": dict.fromkeys(("vision", "aligner", *_LANGUAGE), "full")},
    "only_lora_names": {"preset": "lora-only"},
    "issue64_lora_attn_pool": {"preset": "lora", **_WITH_TABLE},
    "issue64_lora_attn_pool_fix_llm": {
        "preset": "lora",
        "components": {"language": "frozen", "embeddings": "frozen"},
        **_WITH_TABLE,
    },
    "dialogue_doc_default": {"preset": "lora+llm", "rules": [_POST], **_WITH_TABLE},
    "dialogue_doc_fix_llm": {
        "preset": "lora",
        "components": {"language": "frozen"},
        "rules": [_POST],
        **_WITH_TABLE,
    },
    "dialogue_doc_fix_resampler": {"preset": "lora-only", "components": dict.fromkeys(_LANGUAGE, "full")},
    "peft_use_lora": {
        "preset": "lora-only",
        "lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05},
        "rules": [{"pattern": [r".*\.in_proj", r".*\.out_proj", r".*\.c_fc"], "means": "lora"}],
    },
}


def read_golden_case(folder: Path) -> GoldenCase | None:
    """Read a case folder, or return None when its config is not in the form of Monkey's.

    Raises:
        ModelError: The config is impossible.
        DataError: An image is missing or broken.
    """
    document = read_config(folder)
    patched = document.pop("patched", None)
    if not isinstance(patched, Mapping) or "visual" not in document:
        return None
    inputs = json.loads((folder / "inputs.json").read_text("utf-8"))
    # The references were made with every dropout off, whatever the config says.
    document["visual"] = {**document["visual"], "lora_dropout": 0.0}
    document.update(emb_dropout_prob=0.0, attn_dropout_prob=0.0)
    config = MonkeyConfig(
        **{**document, "llm_lora": patched.get("variant", DEFAULT_VARIANT) != DEFAULT_VARIANT},
    )
    model = MonkeyForCausalLM(config)
    model.train(inputs["mode"] == "train")
    return GoldenCase(
        model=model,
        weights=folder / inputs["weights"],
        inputs=_model_inputs(folder, inputs, config),
        stages=run_stages,
        recipes=UPSTREAM_RECIPES,
    )


def _model_inputs(folder: Path, inputs: Mapping[str, Any], config: MonkeyConfig) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "inputs.safetensors")
    given = {"input_ids": tensors["input_ids"].long(), "labels": tensors["labels"].long()}
    given["attention_mask"] = tensors["attention_mask"]
    if inputs["images_in_order"]:
        size = config.vision.image_size
        given["pixel_values"] = torch.stack([load_pixels(folder / name, size) for name in inputs["images_in_order"]])
    return given


def run_stages(
    model: PreTrainedModel, inputs: Mapping[str, Any], names: Sequence[str]
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Run the model once, in the form of :class:`~vlm_lora_plugin.contract.GoldenCase`'s ``stages``.

    ``view{k}`` is the k-th view that the tower sees. Stages of the language model hold the positions that
    are not padding, row by row.

    Raises:
        ModelError: A stage has an unknown name.
    """
    transformer = model.get_submodule("transformer")
    visual = transformer.get_submodule("visual")
    modules = {
        "visual": visual,
        "attn_pool": visual.get_submodule("attn_pool"),
        "trunk": visual.get_submodule("transformer"),
        "last": transformer.get_submodule("ln_f"),
        **numbered("layer", transformer.get_submodule("h")),
    }
    with recorded(modules) as calls:
        output = model(**inputs, output_hidden_states=True)
    calls["embeds"], calls["logits"] = [output.hidden_states[0]], [output.logits]
    mask = inputs["attention_mask"].bool()
    return output, {name: _stage(name, calls, mask) for name in names}


def _stage(name: str, calls: Calls, mask: torch.Tensor) -> torch.Tensor:
    language = {"inputs_embeds_spliced": "embeds", "last_hidden_state": "last", "logits": "logits"}
    if name in language:
        return calls[language[name]][0][mask]
    if match := re.fullmatch(r"hidden_after_layer(\d+)", name):
        return calls[f"layer{match[1]}"][0][mask]
    if match := re.fullmatch(r"view(\d+)\.(visual|attn_pool|trunk_every(\d+))", name):
        part = "trunk" if match[3] else match[2]
        return calls[part][int(match[1])][:, :: int(match[3] or 1)]
    raise ModelError(f"Monkey has no stage named {name}")
