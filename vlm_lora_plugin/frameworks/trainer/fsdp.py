"""FSDP is refused before anything is trained: nothing here saves what it shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate.utils import parse_flag_from_env

from vlm_lora_plugin.errors import TrainingError

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

VARIABLE = "ACCELERATE_USE_FSDP"
"""What ``accelerate launch --use_fsdp`` sets; the Trainer needs no argument then."""


def refuse_fsdp(args: TrainingArguments, trainer: Trainer | None = None) -> None:
    """Stop a run that FSDP would shard, in its first version or its second.

    Args:
        args: The Trainer's arguments.
        trainer: The Trainer itself, where there is one: its accelerator may have been given a plugin.

    Raises:
        TrainingError: FSDP is on; names what turned it on.
    """
    if args.fsdp:
        _refuse("TrainingArguments.fsdp is set", "Leave fsdp and fsdp_config out")
    if parse_flag_from_env(VARIABLE):
        _refuse(f"The environment variable {VARIABLE} is set", "Start without accelerate's --use_fsdp and its config")
    if trainer is not None and trainer.is_fsdp_enabled:
        _refuse("The Trainer's accelerator has an FSDP plugin", "Make the accelerator's state without one")


def _refuse(what: str, fix: str) -> None:
    raise TrainingError(
        f"{what}: FSDP cannot train a prepared model",
        why="It would train, and fail at the first checkpoint: FSDP saves shards of the whole model, from which no "
        "adapter can be loaded.",
        fix=f"{fix}: one device a process trains by DistributedDataParallel (torchrun); where the model does not fit "
        "on one device, use DeepSpeed ZeRO-3 (hardware in the recipe, or --deepspeed).",
    )
