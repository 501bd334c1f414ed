"""The tiny models that the jobs of this folder train, and what they train of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

import vlm_lora_monkey.tiny
import vlm_lora_omnilmm.tiny
import vlm_lora_xcomposer.tiny

Document = Mapping[str, Any]

FROZEN = {"components": {"vision": "frozen", "aligner": "frozen"}}
LORA, FULL = ({"components": {"vision": means}} for means in ("lora", "full"))
WIDER = {"initializer_range": 0.1}
"""With the published 0.02 so small a model hardly heeds its images."""


@dataclass(frozen=True)
class TinyFamily:
    """A model and its recipes.

    Attributes:
        write: Writes the model into a folder, and returns it; dropout is off.
        vision: Its vision tower's module.
        towers: What recipes say about the vision tower: ``frozen`` (and what follows it too), ``lora`` and ``full``.
    """

    write: Callable[[Path], Path]
    vision: str
    towers: Mapping[str, Document]


def _write_monkey(folder: Path) -> Path:
    """Write a model without the tower's LoRA, as the base model that Monkey starts from."""
    vlm_lora_monkey.tiny.write_tiny_folder(folder, visual={"lora_dropout": 0.0})
    weights = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if "_lora" not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    return folder


def _write_omnilmm(folder: Path) -> Path:
    """Write a model whose images are twice as wide as the tower's positions, as the published one's are."""
    return vlm_lora_omnilmm.tiny.write_tiny_folder(folder, image_size=64, **WIDER)


def _xcomposer(variant: str, **config: Any) -> TinyFamily:
    return TinyFamily(
        functools.partial(vlm_lora_xcomposer.tiny.write_tiny_folder, variant=variant, **WIDER, **config),
        "vit",
        {
            "frozen": FROZEN,
            "lora": {**LORA, "lora": {"target_modules": {"vision": "all-linear"}}},
            "full": {"preset": "full"},
        },
    )


FAMILIES = {
    "monkey": TinyFamily(_write_monkey, "transformer.visual", {"frozen": FROZEN, "lora": {}, "full": FULL}),
    "omnilmm": TinyFamily(
        _write_omnilmm,
        "model.vision_tower",
        {"frozen": {"preset": "lora-text"}, "lora": LORA, "full": {"preset": "lora+vision"}},
    ),
    "xcomposer2_4khd": _xcomposer("xcomposer2_4khd", hd_num=4),
    "xcomposer2_5": _xcomposer("xcomposer2_5", hd_num=4),
    "xcomposer2": _xcomposer("xcomposer2"),
}
"""By name; with ``hd_num`` 4 one rank's images have more crops than a frozen tower sees at a time, another's fewer."""
