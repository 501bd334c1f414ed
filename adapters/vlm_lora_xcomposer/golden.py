"""Reads XComposer's reference numbers: upstream's config, inputs and recipe names in our own terms."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from vlm_lora_plugin.contract import GoldenCase
from vlm_lora_plugin.data.encoding import IGNORE_INDEX
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import read_config
from vlm_lora_plugin.testing import numbered, recorded
from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.images import load_pixels
from vlm_lora_xcomposer.modeling import XComposerForCausalLM
from vlm_lora_xcomposer.names import POST_NORM_NAME, PROJECTOR_PREFIX, VIDEO_PREFIX
from vlm_lora_xcomposer.variants import XCOMPOSER2, XCOMPOSER2_4KHD, XCOMPOSER2_5

VARIANT_NAMES = {"2": XCOMPOSER2, "4khd": XCOMPOSER2_4KHD, "2.5": XCOMPOSER2_5}

_THINNED = re.compile(r"every (\d+)\w* index of axis 1")
_GLOBAL_STRIDE, _CROP_STRIDE = 12, 24


def read_golden_case(folder: Path) -> GoldenCase | None:
    """Read a case folder, or return None when its config is not in the form of XComposer's.

    Raises:
        ModelError: The config is impossible.
        DataError: An image is missing or broken.
    """
    document = read_config(folder)
    patched = document.get("patched")
    if document.get("variant") not in VARIANT_NAMES or not isinstance(patched, Mapping):
        return None
    weights = folder / "weights.safetensors"
    config = _config(document["variant"], document["llm_config"], patched, has_post_norm=_has_post_norm(weights))
    config._attn_implementation = "eager"
    model = XComposerForCausalLM(config)
    model.eval()  # type: ignore[no-untyped-call]
    stored = json.loads((folder / "expected.json").read_text("utf-8")).get("stored", {})
    return GoldenCase(
        model=model,
        weights=weights,
        inputs=_model_inputs(folder, config),
        stages=partial(run_stages, stored=stored),
        recipes=upstream_recipes(has_video=config.video_memory_size is not None),
    )


def upstream_recipes(*, has_video: bool) -> dict[str, dict[str, Any] | str]:
    """Return upstream's recipes by name, each the one of ours that trains the same.

    ``fix_vit`` and ``fix_sampler`` change nothing beside LoRA. Without ``fix_vit`` upstream takes CLIP's last
    norm out of the model; in full training it also lets the projector of the video memory learn, which no image
    or text reaches.
    """
    recipes: dict[str, dict[str, Any] | str] = {}
    accident = {"pattern": VIDEO_PREFIX, "means": "full"}
    removed = {"pattern": POST_NORM_NAME, "means": "frozen"}
    for fix_vit in (True, False):
        for fix_sampler in (True, False):
            rules: list[dict[str, Any]] = [] if fix_sampler else [{"pattern": PROJECTOR_PREFIX, "means": "full"}]
            rules += [accident] * has_video + [removed] * (not fix_vit)
            document: dict[str, Any] = {"preset": "full-llm", "rules": rules, "train_fixed_tables": True}
            if not fix_vit:
                document["components"] = {"vision": "full"}
            name = f"fix_vit={fix_vit}_fix_sampler={fix_sampler}"
            recipes[f"full_{name}"] = document
            recipes[f"lora_{name}"] = "lora+separators"
    return recipes


def _has_post_norm(weights: Path) -> bool:
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as tensors:
        return any(re.fullmatch(POST_NORM_NAME, name) for name in tensors.keys())  # noqa: SIM118  no mapping


def _config(
    variant: str, llm: Mapping[str, Any], patched: Mapping[str, Any], *, has_post_norm: bool
) -> XComposerConfig:
    plora = patched["plora"]
    return XComposerConfig(
        **{key: value for key, value in llm.items() if key not in ("attn_implementation", "max_length")},
        variant=VARIANT_NAMES[variant],
        vision=dict(patched["clip"]),
        plora={"wqkv": list(plora["wqkv"]), "other": list(plora["other"]), "dropout": 0.0},
        projector_size=patched["vision_proj"][1],
        post_layernorm=has_post_norm,
        video_memory_size=patched.get("video_mem_in"),
    )


def _model_inputs(folder: Path, config: XComposerConfig) -> dict[str, Any]:
    document = json.loads((folder / "inputs.json").read_text("utf-8"))
    tensors = load_file(folder / "inputs.safetensors")
    ids = tensors["input_ids"].long()
    given: dict[str, Any] = {
        # Cases have the label that is ignored at the places of image tokens.
        "input_ids": ids.masked_fill(ids == IGNORE_INDEX, config.image_token_id),
        "labels": tensors["labels"].long(),
        "attention_mask": tensors["attention_mask"],
    }
    names: Sequence[str] = [name for sample in document["samples"] for name in _listed(sample.get("image"))]
    if names:
        given["pixel_values"] = [load_pixels(folder / name, config, document["hd_num"]) for name in names]
    return given


def _listed(names: str | Sequence[str] | None) -> Sequence[str]:
    return [names] if isinstance(names, str) else names or []


def run_stages(
    model: PreTrainedModel, inputs: Mapping[str, Any], names: Sequence[str], *, stored: Mapping[str, str]
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Run the model once, in the form of :class:`~vlm_lora_plugin.contract.GoldenCase`'s ``stages``.

    Args:
        model: The model.
        inputs: What its forward takes.
        names: The stages wanted.
        stored: How a stage was thinned, ``every 4th index of axis 1, from 0``, by its name.

    Raises:
        ModelError: A stage has an unknown name.
    """
    trunk, tower, projector = (model.get_submodule(name) for name in ("model", "vit", "vision_proj"))
    outputs = {
        "clip_features": tower,
        "vision_proj_output": projector,
        "last_hidden": trunk.get_submodule("norm"),
        **numbered("layer.", trunk.get_submodule("layers")),
    }
    taken = {"vit_input": tower, "vit_output": projector, "inputs_embeds": trunk}
    with recorded(outputs, taken) as calls:
        output = model(**inputs)
    results = {name: tensors[0] for name, tensors in calls.items() if tensors}
    for name in ("vit_output", "vision_proj_output"):
        if name in results:
            results[name] = results[name][None]
    results.update(_from_inputs(model, inputs), logits=output.logits)
    results["logits_supervised"] = output.logits[:, :-1][inputs["labels"][:, 1:] != IGNORE_INDEX]
    return output, {name: _stage(name, results, stored) for name in names}


def _from_inputs(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the stages that a processor makes; the references call them so, and they tell what was run."""
    image = inputs["input_ids"] == model.config.image_token_id
    return {
        "tokens": inputs["input_ids"].masked_fill(image, IGNORE_INDEX),
        "im_mask": image,
        "labels": inputs["labels"],
        "attention_mask": inputs["attention_mask"].long(),
        "vit_split": torch.tensor(_lengths(model, inputs)),
    }


def _lengths(model: PreTrainedModel, inputs: Mapping[str, Any]) -> list[int]:
    """Return how many tokens each image has."""
    if "pixel_values" not in inputs:
        return []
    with torch.no_grad():
        return cast(XComposerForCausalLM, model).encode_images(inputs["pixel_values"])[1]


def _stage(name: str, results: Mapping[str, torch.Tensor], stored: Mapping[str, str]) -> torch.Tensor:
    if name == "vit_input_global_strided":
        return results["vit_input"][:1, :, ::_GLOBAL_STRIDE, ::_GLOBAL_STRIDE]
    if name == "vit_input_crops_strided":
        return results["vit_input"][1:, :, ::_CROP_STRIDE, ::_CROP_STRIDE]
    if name not in results:
        raise ModelError(f"XComposer has no stage named {name}")
    thinned = _THINNED.match(stored.get(name, ""))
    return results[name][:, :: int(thinned[1])] if thinned else results[name]
