"""The stages of a forward pass that XComposer's reference numbers hold, thinned as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.testing import numbered, recorded
from vlm_lora_xcomposer.modeling import XComposerForCausalLM

_THINNED = re.compile(r"every (\d+)\w* index of axis 1")
_GLOBAL_STRIDE, _CROP_STRIDE = 12, 24
_IGNORED = -100


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
    results["logits_supervised"] = output.logits[:, :-1][inputs["labels"][:, 1:] != _IGNORED]
    return output, {name: _stage(name, results, stored) for name in names}


def _from_inputs(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the stages that a processor makes; the references call them so, and they tell what was run."""
    image = inputs["input_ids"] == model.config.image_token_id
    return {
        "tokens": inputs["input_ids"].masked_fill(image, _IGNORED),
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
