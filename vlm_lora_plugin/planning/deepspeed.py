"""The DeepSpeed document of a job: the core's by stage, the family's over it, the recipe's own keys last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.documents import merge
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
from vlm_lora_plugin.planning.stage import adapter_settings, given_stage
from vlm_lora_plugin.planning.tiers import choose_tier

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe
    from vlm_lora_plugin.vocabulary import Hardware

PERSISTENCE_THRESHOLD = 40_960
"""Ten times 4096, transformers' own formula at the hidden size of 7B models."""


def deepspeed_settings(
    recipe: ResolvedRecipe, family: Family, hardware: Hardware, *, offload: bool = False
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
    offload = offload or recipe.offloads
    stage = decided_stage(recipe, family, hardware, offload=offload)
    if stage == 0:
        check_unused(recipe, hardware)
        return None
    document = stage_settings(stage, recipe, family, hardware, offload=offload)
    check_recipe(document, recipe, hardware)
    return document


def decided_stage(recipe: ResolvedRecipe, family: Family, hardware: Hardware, *, offload: bool = False) -> int:
    """Return the ZeRO stage: the one that the recipe or the family's adapter decides, or else the hardware's."""
    fit = recipe.fit
    if fit is not None and fit.hardware == hardware and (not offload or recipe.offloads):
        return fit.stage
    given = given_stage(recipe, family, hardware)
    stage = None if given is None else (given[0], str(given[1]))
    return choose_tier(recipe, family, recipe.architecture, hardware, offload=offload, stage=stage).stage


def stage_settings(
    stage: int, recipe: ResolvedRecipe, family: Family, hardware: Hardware, *, offload: bool = False
) -> dict[str, Any]:
    """Return the document of one stage, 0 included: a launcher that insists on a file takes that, too.

    Raises:
        HardwareError: The adapter's or the recipe's keys cannot be used.
    """
    size = family.size
    trainable = BUCKET_ZERO_2 if size is None else published_counts(recipe, size).trainable
    document = merge(_common(hardware), {"zero_optimization": zero_block(stage, trainable, offload=offload)})
    overrides = adapter_settings(recipe, family, hardware)
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
