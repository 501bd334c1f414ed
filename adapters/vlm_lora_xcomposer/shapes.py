"""What the shapes of a folder's tensors tell about an XComposer, beside its config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora_plugin.contract import LoadRequest
from vlm_lora_plugin.errors import ModelError, listed
from vlm_lora_plugin.models import check_values, config_of, has_weights, tensor_shapes
from vlm_lora_xcomposer.configuration import PARTS, XComposerConfig
from vlm_lora_xcomposer.folder import xcomposer_document
from vlm_lora_xcomposer.names import PLORA_NAME
from vlm_lora_xcomposer.variants import VARIANTS, XCOMPOSER2, XCOMPOSER2_4KHD, XCOMPOSER2_5

_TOWER = "vit.vision_tower.vision_model"
_POSITIONS = f"{_TOWER}.embeddings.position_embedding.weight"
_PATCHES = f"{_TOWER}.embeddings.patch_embedding.weight"
_LAYER = rf"{re.escape(_TOWER)}\.encoder\.layers\.(\d+)\..*"

Shapes = Mapping[str, tuple[int, ...]]


def load_config(request: LoadRequest) -> XComposerConfig:
    """Read a folder's config; what it leaves open, the shapes of the tensors decide.

    Only for device ``"meta"`` may weight files be missing: it is then ``request.variant``, None standing for what the
    config says.

    Raises:
        ModelError: The config is impossible, or config or tensors say another variant than the request.
        WeightsError: The weight files cannot be read.
    """
    folder, variant = request.folder, request.variant
    document = xcomposer_document(folder)
    check_values(XComposerConfig, document, folder, PARTS)
    if request.device != "meta" or has_weights(folder):
        try:
            document = completed(document, tensor_shapes(folder))
        except ModelError as error:
            raise ModelError(f"{folder}: {error.what}", why=error.why, fix=error.fix) from None
    known = document.get("variant") or (XCOMPOSER2 if document.get("img_size") is not None else None)
    if variant is not None and known not in (None, variant):
        raise ModelError(f"{folder} holds the variant {known}, not {variant}", fix="Leave the variant out.")
    return config_of(XComposerConfig, {**document, "variant": variant or known}, folder, PARTS)


def with_sizes_of_tensors(config: XComposerConfig, folder: Path) -> XComposerConfig:
    """Return a config that was read by the library, with what a folder's tensors say; unchanged without any.

    Raises:
        ModelError: The tensors are those of no XComposer.
        WeightsError: The weight files cannot be read.
    """
    if not has_weights(folder):
        return config
    found = load_config(LoadRequest(folder))
    for key in ("variant", "vision", "plora", "projector_size", "post_layernorm", "video_memory_size", "hd_num"):
        setattr(config, key, getattr(found, key))
    return config


def completed(document: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Return a config's content with the keys that it lacks and the shapes of tensors tell.

    Keys that the document has stay. The scale of partial LoRA is in no file: it is the published variant's.

    Raises:
        ModelError: The tensors are those of no XComposer.
    """
    wanted = [_POSITIONS, _PATCHES, "vision_proj.0.weight"]
    plora = {name: shape for name, shape in shapes.items() if re.fullmatch(PLORA_NAME, name) and "Plora_A" in name}
    missing = [name for name in wanted if name not in shapes] + ([] if plora else [PLORA_NAME])
    if missing:
        raise ModelError(
            f"The weights hold no XComposer: they lack {listed(missing)}", fix="Download the whole folder again."
        )
    vision = {**_vision(shapes), **document.get("vision", {})}
    variant = document.get("variant") or _variant(shapes, int(vision["image_size"]))
    published = VARIANTS.get(variant)
    ranks = {
        "wqkv": _rank(plora, r".*\.wqkv\..*"),
        "other": _rank(plora, r".*\.(wo|w[123])\..*"),
    }
    scale = published.wqkv_scale if published else 1.0
    video = shapes.get("video_mem_proj.0.weight")
    return {
        "projector_size": shapes["vision_proj.0.weight"][0],
        "post_layernorm": f"{_TOWER}.post_layernorm.weight" in shapes,
        "video_memory_size": video[1] if video else None,
        **document,
        "variant": variant,
        "vision": vision,
        "plora": {
            "wqkv": [ranks["wqkv"], ranks["wqkv"] * scale],
            "other": [ranks["other"], ranks["other"]],
            **document.get("plora", {}),
        },
    }


def _vision(shapes: Shapes) -> dict[str, Any]:
    positions, width = shapes[_POSITIONS]
    patch = shapes[_PATCHES][-1]
    layers = {int(found[1]) for name in shapes if (found := re.fullmatch(_LAYER, name))}
    inner = shapes.get(f"{_TOWER}.encoder.layers.0.mlp.fc1.weight", (4 * width,))[0]
    return {
        "image_size": round((positions - 1) ** 0.5) * patch,
        "patch_size": patch,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": len(layers),
    }


def _variant(shapes: Shapes, image_size: int) -> str:
    if "plora_sub_GN" not in shapes:
        return XCOMPOSER2
    of_size = [name for name in (XCOMPOSER2_4KHD, XCOMPOSER2_5) if VARIANTS[name].image_size == image_size]
    if not of_size:
        raise ModelError(
            f"Crops of {image_size} pixels are those of no published XComposer, so its variant is unknown",
            why="4KHD and 2.5 hold the same tensors and transform images differently.",
            fix=f'Write "variant" into config.json: {XCOMPOSER2_4KHD} or {XCOMPOSER2_5}.',
        )
    return of_size[0]


def _rank(plora: Shapes, pattern: str) -> int:
    ranks = {shape[0] for name, shape in plora.items() if re.fullmatch(pattern, name)}
    if len(ranks) != 1:
        raise ModelError(
            f"Partial LoRA has the ranks {sorted(ranks)} where one is expected", fix="Download the weights again."
        )
    return ranks.pop()
