"""The stages of a forward pass that XComposer's reference numbers hold, thinned as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from vlm_lora_plugin.errors import ModelError
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
    modules = {
        "vit_input": model.get_submodule("vit"),
        "clip_features": model.get_submodule("vit"),
        "vit_output": model.get_submodule("vision_proj"),
        "vision_proj_output": model.get_submodule("vision_proj"),
        "last_hidden": model.get_submodule("model.norm"),
        "inputs_embeds": model.get_submodule("model"),
    }
    for index, block in enumerate(model.get_submodule("model.layers").children()):
        modules[f"layer.{index}"] = block
    results: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for name, module in modules.items():
            hook = _input_of if name in ("vit_input", "vit_output", "inputs_embeds") else _output_of
            stack.callback(hook(module, name, results))
        output = model(**inputs)
    for name in ("vit_output", "vision_proj_output"):
        if name in results:
            results[name] = results[name][None]
    results.update(_from_inputs(model, inputs), logits=output.logits)
    results["logits_supervised"] = output.logits[:, :-1][inputs["labels"][:, 1:] != _IGNORED]
    return output, {name: _stage(name, results, stored) for name in names}


def _input_of(module: nn.Module, name: str, results: dict[str, torch.Tensor]) -> Any:
    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        results[name] = args[0] if args else kwargs[name]

    return module.register_forward_pre_hook(keep, with_kwargs=True).remove


def _output_of(module: nn.Module, name: str, results: dict[str, torch.Tensor]) -> Any:
    def keep(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        results[name] = output

    return module.register_forward_hook(keep).remove


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
