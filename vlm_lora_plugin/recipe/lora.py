"""The section `lora`."""

from __future__ import annotations

from pydantic import Field

from vlm_lora_plugin.recipe.section import Names, Section
from vlm_lora_plugin.vocabulary import ComponentName


class LoraSettings(Section):
    """PEFT's LoRA, in PEFT's own words. LoRA that a model carries itself has its own rank and scale."""

    r: int = Field(16, ge=1, description="Rank.")
    lora_alpha: float = Field(32, gt=0, description="Scale is lora_alpha / r (or / sqrt(r) with use_rslora).")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="Dropout in front of the down projection.")
    use_rslora: bool = Field(False, description="Rank-stabilised scale, lora_alpha / sqrt(r).")
    use_dora: bool = Field(False, description="Weight-decomposed LoRA; also trains a magnitude per output.")
    target_modules: dict[ComponentName, Names] = Field(
        default_factory=dict,
        description="Suffixes of the linear layers that get LoRA, by component; `all-linear` for every one. "
        "Components not named here use the family's own list.",
    )
