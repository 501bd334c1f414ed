"""The DeepSpeed document of a job: the core's by stage, the family's over it, the recipe's own keys last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.documents import merge
from vlm_lora_plugin.errors import HardwareError
from vlm_lora_plugin.planning.deepspeed_checks import check_recipe, check_unused
from vlm_lora_plugin.planning.deepspeed_document import check_document
from vlm_lora_plugin.planning.memory import (
    BUCKET_ZERO_2,
    MAX_LIVE_PARAMETERS,
    PREFETCH_BUCKET,
    REDUCE_BUCKET_ZERO_3,
    bucket_size,
    offloads_optimizer,
    published_counts,
)
from vlm_lora_plugin.planning.tiers import choose_tier
from vlm_lora_plugin.plugins.manager import get_manager

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.vocabulary import Hardware

PERSISTENCE_THRESHOLD = 40_960
"""Ten times 4096, transformers' own formula at the hidden size of 7B models."""


def deepspeed_settings(
    recipe: Recipe, family: Family, hardware: Hardware, *, offload: bool = False
) -> dict[str, Any] | None:
    """Return the DeepSpeed document for a recipe on a machine.

    It goes to ``TrainingArguments(deepspeed=...)``, or as a JSON file to ms-swift's ``--deepspeed``; both fill in
    its ``auto`` values from their own arguments.

    Args:
        recipe: The resolved recipe.
        family: Whose model it is.
        hardware: The machine; the recipe's own is ``recipe.hardware.machine()``.
        offload: Keep ZeRO-3's shards of the weights in pinned host memory, as ``hardware.offload`` does.

    Returns:
        The document, or None where no DeepSpeed is needed: one device, or nothing to shard.

    Raises:
        HardwareError: The adapter's or the recipe's keys cannot be used, or contradict the recipe.
    """
    offload = offload or (recipe.hardware is not None and recipe.hardware.offload)
    stage = decided_stage(recipe, family, hardware, offload=offload)
    if stage == 0:
        check_unused(recipe, hardware)
        return None
    document = stage_settings(stage, recipe, family, hardware, offload=offload)
    check_recipe(document, recipe, hardware)
    return document


def decided_stage(recipe: Recipe, family: Family, hardware: Hardware, *, offload: bool = False) -> int:
    """Return the ZeRO stage: the recipe's, or else the tier's."""
    given = given_stage(recipe, family, hardware)
    return choose_tier(recipe, family, hardware, offload=offload, stage=given).stage


def given_stage(recipe: Recipe, family: Family, hardware: Hardware) -> tuple[int, str] | None:
    """Return the stage that the recipe or the family's adapter decides, and by which words; None leaves it open.

    Raises:
        HardwareError: Two keys of the recipe name different stages.
    """
    own = None if recipe.hardware is None else recipe.hardware.zero_stage
    inside = _stage_of(recipe.deepspeed, "the recipe's `deepspeed`")
    if own is not None and inside is not None and own != inside:
        raise HardwareError(
            f"hardware.zero_stage is {own}, deepspeed.zero_optimization.stage is {inside}",
            fix="Give one of them.",
        )
    if own is not None:
        return own, "set in the recipe"
    if inside is not None:
        return inside, "set in the recipe's deepspeed.zero_optimization.stage"
    if hardware.ranks == 1:
        return None
    asked = _stage_of(get_manager().deepspeed_config(family, recipe, hardware), f"{family.title}'s adapter")
    return None if asked is None else (asked, f"{family.title}'s adapter asks for it")


def _stage_of(document: Any, source: str) -> int | None:
    check_document(document, source)
    stage = (document.get("zero_optimization") or {}).get("stage")
    if stage is None:
        return None
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise HardwareError(f"{source} has zero_optimization.stage: {stage!r}", fix="The stages are 0, 1, 2 and 3.")
    return int(stage)


def stage_settings(
    stage: int, recipe: Recipe, family: Family, hardware: Hardware, *, offload: bool = False
) -> dict[str, Any]:
    """Return the document of one stage, 0 included: a launcher that insists on a file takes that, too.

    Raises:
        HardwareError: The adapter's or the recipe's keys cannot be used.
    """
    size = family.size
    trainable = BUCKET_ZERO_2 if size is None else published_counts(recipe, size).trainable
    document = merge(_common(hardware), {"zero_optimization": zero_block(stage, trainable, offload=offload)})
    overrides = get_manager().deepspeed_config(family, recipe, hardware)
    for over, source in ((overrides, f"{family.title}'s adapter"), (recipe.deepspeed, "the recipe's `deepspeed`")):
        check_document(over, source)
        document = merge(document, over, null_removes=True)
    zero = document["zero_optimization"]
    zero["stage"] = stage
    if stage != 3:
        for key in [key for key in zero if key.startswith("stage3_")]:
            del zero[key]
    return document


def _common(hardware: Hardware) -> dict[str, Any]:
    precision: dict[str, Any] = {"bf16": {"enabled": "auto"}}
    if not hardware.bf16:
        precision = {"bf16": {"enabled": False}, "fp16": dict(FP16)}
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        **precision,
    }


FP16 = {
    "enabled": "auto",
    "loss_scale": 0,
    "initial_scale_power": 16,
    "loss_scale_window": 1000,
    "hysteresis": 2,
    "min_loss_scale": 1,
}


def zero_block(stage: int, trainable: int, *, offload: bool = False) -> dict[str, Any]:
    """Return ``zero_optimization`` of a stage.

    Args:
        stage: 0 to 3.
        trainable: Elements that learn: less than a bucket of upstream's size needs no such bucket.
        offload: With stage 3: shards of the weights stay in pinned host memory.
    """
    if stage == 0:
        return {"stage": 0}
    if stage < 3:
        bucket = bucket_size(trainable)
        return {
            "stage": stage,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        }
    block: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_bucket_size": REDUCE_BUCKET_ZERO_3,
        "stage3_prefetch_bucket_size": PREFETCH_BUCKET,
        "stage3_param_persistence_threshold": PERSISTENCE_THRESHOLD,
        "stage3_max_live_parameters": MAX_LIVE_PARAMETERS,
        "stage3_max_reuse_distance": MAX_LIVE_PARAMETERS,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    if offload:
        block["offload_param"] = {"device": "cpu", "pin_memory": True}
        if offloads_optimizer(trainable):
            block["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return block
