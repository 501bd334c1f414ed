"""The order in which ZeRO-3 works: arguments, then the model's weights, then ``prepare``, then the engine.

transformers knows DeepSpeed's configuration only by a weak reference to an object that ``TrainingArguments``
holds. Without it, weights that are loaded later are silently full tensors on every rank.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from vlm_lora_plugin.errors import ModelError, TrainingError
from vlm_lora_plugin.parallel.sharding import is_sharded, optimizer_keeps

if TYPE_CHECKING:
    from torch import nn

_kept: list[Any] = []
"""The configuration object that transformers refers to weakly, while the last arguments made here use it."""


def keep_configuration(configuration: object | None) -> None:
    """Keep the ``HfDeepSpeedConfig`` of new arguments alive, in place of the one before; None keeps none."""
    _kept[:] = [] if configuration is None else [configuration]


def zero3_configuration() -> Mapping[str, Any] | None:
    """Return DeepSpeed's configuration where weights are to be sharded when they are loaded, else None."""
    if "transformers" not in sys.modules:  # then nobody has made TrainingArguments
        return None
    from transformers.integrations.deepspeed import deepspeed_config, is_deepspeed_zero3_enabled

    if not is_deepspeed_zero3_enabled():
        return None
    configuration: Mapping[str, Any] = deepspeed_config()
    return configuration


def zero3_scales_the_loss() -> bool:
    """Return whether ZeRO-3 is to train in fp16.

    It then scales the loss only where the optimizer is given fp16 parameters, of which it keeps fp32 values itself
    (``CreateLossScaler`` in ``deepspeed/runtime/fp16/loss_scaler.py``); of fp32 ones the scale stays 1, and small
    gradients underflow.
    """
    return bool(((zero3_configuration() or {}).get("fp16") or {}).get("enabled") is True)


def start_communication() -> None:
    """Let DeepSpeed communicate as torch does already; ZeRO-3 needs it before the first weight is loaded.

    ``TrainingArguments(use_cpu=True)`` starts torch's processes but not DeepSpeed's, which then takes itself
    for alone.
    """
    import deepspeed

    if deepspeed.comm.is_initialized():
        return
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False)
        return
    if "RANK" not in os.environ:
        raise TrainingError(
            "ZeRO-3 is on, but no process group was started",
            why="Parameters cannot be spread over processes that do not know each other.",
            fix="Start the program with torchrun, also on a single device: torchrun --nproc-per-node 1 program.py.",
        )
    deepspeed.init_distributed(auto_mpi_discovery=False)


def refuse_engine(model: nn.Module) -> None:
    """Refuse a model that a framework has wrapped, or that a DeepSpeed engine trains, already.

    Raises:
        ModelError: It is one.
    """
    wrapped = type(model).__name__
    if wrapped in {"DeepSpeedEngine", "DistributedDataParallel", "FullyShardedDataParallel"}:
        problem = f"The model is already inside a {wrapped}"
    elif any(optimizer_keeps(tensor) for tensor in model.parameters()):
        problem = "A DeepSpeed engine trains this model already"
    else:
        return
    raise ModelError(
        problem,
        why="An engine fixes what it trains when it is made; what changes later is silently ignored.",
        fix="Call prepare before the Trainer or deepspeed.initialize, on the freshly loaded model.",
    )


def check_loaded_sharded(model: nn.Module) -> None:
    """Check that under ZeRO-3 the weights were loaded sharded, not in full on every rank.

    Args:
        model: The base or prepared model, before an engine is made.

    Raises:
        ModelError: They are whole.
    """
    if zero3_configuration() is None or any(is_sharded(tensor) for tensor in model.parameters()):
        return
    raise ModelError(
        "ZeRO-3 is on, but the model's weights are whole on every rank",
        why="They were loaded before TrainingArguments(deepspeed=...), so each rank needs memory for all of them.",
        fix="First arguments = training_arguments(recipe, output, deepspeed=...), then load(folder), then prepare.",
    )
