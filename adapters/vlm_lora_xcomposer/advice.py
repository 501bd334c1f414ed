"""What ``inspect`` says about an XComposer recipe beside its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import Recipe

SUGGESTED_RANKS = (4, 32)
SUGGESTED_SCALES = (1, 2)

# Input and output widths of the five adapted layers, in 32 blocks of the published model; each parameter takes
# 16 bytes with its gradient, fp32 weight and AdamW's two means.
PARAMETERS_PER_RANK = 2_359_296
MIB_PER_RANK = PARAMETERS_PER_RANK * 16 / 2**20


def advise(recipe: Recipe) -> tuple[str, ...]:
    """Return the suggested range of LoRA's rank and scale; nothing for a recipe without LoRA."""
    if not any(rule.means == "lora" for rule in recipe.rules):
        return ()
    low, high = SUGGESTED_RANKS
    least, most = SUGGESTED_SCALES
    r, alpha = recipe.lora.r, recipe.lora.lora_alpha
    fits = low <= r <= high and least * r <= alpha <= most * r
    return (
        f"Suggested: lora.r {low} to {high}, lora.lora_alpha {least} to {most} times r. This recipe has r {r}, "
        f"lora_alpha {alpha:g}{'.' if fits else ': outside of that.'}",
        f"At the published size each step of r takes {MIB_PER_RANK:.0f} MiB with gradient and AdamW state (predicted); "
        "lora_alpha takes none.",
    )
