"""Who decides the ZeRO stage: the user, the family's adapter, or, where neither does, the hardware."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.documents import value_at
from vlm_lora_plugin.errors import HardwareError
from vlm_lora_plugin.planning.deepspeed_document import check_document
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.recipe import Source

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe
    from vlm_lora_plugin.vocabulary import Hardware

STAGE = "hardware.zero_stage"
INNER_STAGE = "deepspeed.zero_optimization.stage"


def adapter_settings(recipe: ResolvedRecipe, family: Family, hardware: Hardware) -> Mapping[str, Any]:
    """Return what a family's adapter wants of DeepSpeed on a machine; it is asked once for a recipe and machine.

    Raises:
        HardwareError: Its answer says what no part of a DeepSpeed document may say.
    """
    if hardware not in recipe.adapter_settings:
        answer = get_manager().deepspeed_config(family, recipe, hardware)
        check_document(answer, f"{family.title}'s adapter")
        recipe.adapter_settings[hardware] = answer
    return recipe.adapter_settings[hardware]


def given_stage(recipe: ResolvedRecipe, family: Family, hardware: Hardware) -> tuple[int, Source] | None:
    """Return the stage that the user or the family's adapter decides, and who it is; None leaves it open.

    Raises:
        HardwareError: Two keys of the recipe name different stages.
    """
    own = recipe.hardware.zero_stage if recipe.hardware is not None and not _by_hardware(recipe) else None
    check_document(recipe.deepspeed, "the recipe's `deepspeed`")
    inside = _stage_of(recipe.deepspeed, "the recipe's `deepspeed`")
    if own is not None and inside is not None and own != inside:
        raise HardwareError(f"{recipe.said(STAGE)}, {recipe.said(INNER_STAGE)}", fix="Give one of them.")
    if own is not None:
        return own, recipe.source(STAGE)
    if inside is not None:
        by = recipe.source(INNER_STAGE)
        return inside, Source(by.kind, by.by, f"set in {INNER_STAGE}")
    if hardware.ranks == 1:
        return None
    asked = _stage_of(adapter_settings(recipe, family, hardware), f"{family.title}'s adapter")
    return (
        None if asked is None else (asked, Source("hardware", str(hardware), f"{family.title}'s adapter asks for it"))
    )


def _by_hardware(recipe: ResolvedRecipe) -> bool:
    return recipe.source(STAGE).kind == "hardware"


def _stage_of(document: Mapping[str, Any], source: str) -> int | None:
    stage = value_at(document, "zero_optimization.stage")
    if stage is None:
        return None
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise HardwareError(f"{source} has zero_optimization.stage: {stage!r}", fix="The stages are 0, 1, 2 and 3.")
    return int(stage)
