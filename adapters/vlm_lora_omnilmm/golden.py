"""Reads OmniLMM's reference numbers: upstream's config, inputs and recipe names in our own terms."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from vlm_lora_omnilmm.configuration import OmniLMMConfig
from vlm_lora_omnilmm.modeling import OmniLMMForCausalLM, passes_by_size
from vlm_lora_plugin.contract import GoldenCase
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import Blocks, read_config
from vlm_lora_plugin.patches import wrap_method
from vlm_lora_plugin.testing import Calls, numbered, recorded

MODEL_CLASS = "OmniLMMForCausalLM"
ATOL = 2e-6  # what the references' README states for transformers 5
ALL_IMAGES = "variant_all_images."
TEXT_ONLY = "text_only_row."

_NO_VISION = dict.fromkeys(("aligner", "language", "embeddings", "head"), "full")


def _lora(projections: str, vision: str) -> dict[str, Any]:
    return {
        "preset": "lora",
        "components": {"vision": vision},
        "lora": {"target_modules": {"language": [f"self_attn.{letter}_proj" for letter in projections]}},
        "train_fixed_tables": True,  # upstream trains resampler.pos_embed by accident
    }


UPSTREAM_RECIPES: dict[str, dict[str, Any]] = {
    "as_constructed_tune_clip_true": {"components": {**_NO_VISION, "vision": "full"}},
    "as_constructed_tune_clip_false": {"components": _NO_VISION},
    "initialize_vision_tokenizer_tune_mm_mlp_adapter": {
        "components": {**_NO_VISION, "vision": "full", "head": "frozen"}
    },
    "full_language_vision_frozen": {"components": _NO_VISION},
    **{
        f"lora_{letters}_vision_{vision}": _lora(letters, vision)
        for letters in ("qk", "qkv", "qkvo")
        for vision in ("full", "frozen")
    },
    "lora_qkv_vision_full_modules_to_save": _lora("qkv", "full"),
}


def read_golden_case(folder: Path) -> GoldenCase | None:
    """Read a case folder, or return None when its config is not in the form of OmniLMM's.

    Raises:
        ModelError: The config is impossible.
    """
    document = read_config(folder)
    if document.get("model_class") != MODEL_CLASS:
        return None
    given = document["patched"]["eva_kwargs"]
    tower = {key: given[key] for key in ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")}
    ids = {key: value for key, value in document["vision_config"].items() if key != "use_im_start_end"}
    values = {**document["model_config"], "attention_dropout": 0.0, **ids}
    attention = values.pop("attn_implementation", "eager")
    config = OmniLMMConfig(**values, tower={"image_size": given["img_size"], **tower})
    config._attn_implementation = attention
    model = OmniLMMForCausalLM(config)
    expected = json.loads((folder / "expected.json").read_text("utf-8"))
    model.train(expected.get("mode", "train()") == "train()")
    return GoldenCase(
        model=model,
        weights=folder / "weights.safetensors",
        inputs=_model_inputs(folder),
        stages=run_stages,
        recipes=UPSTREAM_RECIPES,
        atol=ATOL,
    )


def _model_inputs(folder: Path) -> dict[str, Any]:
    tensors = load_file(folder / "inputs.safetensors")
    given: dict[str, Any] = {"input_ids": tensors["input_ids"].long(), "labels": tensors["labels"].long()}
    given["attention_mask"] = tensors["attention_mask"]
    listed = sorted((name for name in tensors if name.startswith("image.")), key=lambda name: int(name.split(".")[1]))
    if listed:
        given["pixel_values"] = [tensors[name] for name in listed]
    elif "images" in tensors and len(tensors["images"]):
        given["pixel_values"] = tensors["images"]
    return given


def run_stages(
    model: PreTrainedModel, inputs: Mapping[str, Any], names: Sequence[str]
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Run the model once, in the form of :class:`~vlm_lora_plugin.contract.GoldenCase`'s ``stages``.

    Upstream keeps only the last of several images in one row; its numbers are compared with a run that does so
    too. Stages of ``variant_all_images`` come from a run of the model as it is, those of ``text_only_row`` from
    one of the rows without an image. Attention is computed step by step, as it was for the references: a fused
    kernel sums in another order, which deep or wide towers carry beyond the tolerance.

    Args:
        model: The model.
        inputs: Of its forward.
        names: The stages wanted. Those of the tower are numbered by image where the images are a list, as
            upstream looks at one after the other; else number 0 is the whole batch.

    Raises:
        ModelError: A stage has an unknown name.
    """
    own = [name for name in names if not name.startswith((ALL_IMAGES, TEXT_ONLY))]
    with ExitStack() as whole, sdpa_kernel(SDPBackend.MATH):
        whole.callback(wrap_method(model, "place_images", _place_last))
        output, stages = _run(model, inputs, own)
    for prefix in (ALL_IMAGES, TEXT_ONLY):
        wanted = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        if wanted:
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                given = inputs if prefix == ALL_IMAGES else _text_rows(model, inputs)
                _, found = _run(model, given, wanted)
            stages |= {prefix + name: tensor for name, tensor in found.items()}
    return output, stages


def _place_last(model: nn.Module, place: Any, embeds: torch.Tensor, blocks: Blocks, tokens: torch.Tensor) -> Any:
    """Let only a row's last image reach the language model; stands around ``place_images``."""
    rows = blocks[0][:, 0].tolist()
    kept = [number for number, row in enumerate(rows) if row not in rows[number + 1 :]]
    return place(embeds, (blocks[0][kept], blocks[1][kept]), tokens[kept])


def _text_rows(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    start_id = model.config.image_ids[1]
    rows = ~(inputs["input_ids"] == start_id).any(1)
    return {name: inputs[name][rows] for name in ("input_ids", "attention_mask", "labels")}


def _run(
    model: PreTrainedModel, inputs: Mapping[str, Any], names: Sequence[str]
) -> tuple[Any, dict[str, torch.Tensor]]:
    inner = model.get_submodule("model")
    tower = inner.get_submodule("vision_tower")
    modules = {
        "vision_tower": tower.get_submodule("norm"),
        "resampler": inner.get_submodule("resampler"),
        **numbered("vision_block", tower.get_submodule("blocks")),
        **numbered("llm_layer", inner.get_submodule("layers")),
    }
    with recorded(modules) as calls:
        output = model(**inputs, output_hidden_states=True)
    images = inputs.get("pixel_values")
    if isinstance(images, list):
        order = [index for together in passes_by_size(images) for index in together]
        for name in calls:
            if not name.startswith("llm_layer"):
                seen = [image[None] for output in calls[name] for image in output]
                calls[name] = [seen[order.index(index)] for index in range(len(order))]
    whole = {
        "inputs_embeds": output.hidden_states[0],
        "last_hidden_state": output.hidden_states[-1],
        "logits": output.logits,
    }
    return output, {name: whole[name] if name in whole else _stage(name, calls) for name in names}


def _stage(name: str, calls: Calls) -> torch.Tensor:
    if (match := re.fullmatch(r"(llm_layer\d+)_out", name)) and match[1] in calls:
        return calls[match[1]][0]
    if match := re.fullmatch(r"(vision_tower|vision_block\d+|resampler)_out\.(\d+)", name):
        seen = calls.get(match[1], [])
        if int(match[2]) < len(seen):
            return seen[int(match[2])]
    raise ModelError(f"OmniLMM has no stage named {name}")
