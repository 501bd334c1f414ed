"""AdamW's moments of one run, kept for another that starts from what it trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlm_lora_plugin.errors import CheckpointError
from vlm_lora_plugin.frameworks.trainer.groups import group_labels, grouped_names
from vlm_lora_plugin.prepared.model import VlmLoraPeftModel, find_prepared

if TYPE_CHECKING:
    from torch.optim import Optimizer

OPTIMIZER_STATE = "optimizer.pt"
"""What the Trainer writes of its optimizer into each checkpoint; under DeepSpeed there is none."""


@dataclass(frozen=True)
class Moments:
    """The state of another run's optimizer.

    Attributes:
        checkpoint: The folder of the Trainer's checkpoint that holds it.
        labels: Which of its parameters formed a group, as
            :func:`~vlm_lora_plugin.frameworks.trainer.groups.group_labels` has it of that run's recipe.
    """

    checkpoint: str
    labels: Mapping[str, str]


class KeptOptimizer(TrainerCallback):
    """Gives a new run's optimizer the state of another run's, before the first step.

    Moments and counts of steps are kept, parameter by parameter; rates, decay and schedule are the new run's. In a run
    that is resumed nothing is done: its own checkpoint has brought the state.

    Args:
        moments: The other run's.
    """

    def __init__(self, moments: Moments) -> None:
        self._moments = moments

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Load the state."""
        model = find_prepared(kwargs["model"])
        if model is not None and not state.global_step:
            keep_moments(model, kwargs["optimizer"], self._moments)


def keep_moments(model: VlmLoraPeftModel, optimizer: Any, moments: Moments) -> None:
    """Load the moments of another run's optimizer into a new one over the same parameters.

    Args:
        model: The prepared model; it trains what the other run did.
        optimizer: A new one over its :func:`~vlm_lora_plugin.frameworks.trainer.groups.parameter_groups`, or
            accelerate's wrapper around it.
        moments: The other run's.

    Raises:
        CheckpointError: Its state cannot be read, or is another optimizer's.
    """
    inner: Optimizer = getattr(optimizer, "optimizer", optimizer)
    names, file = list(model.named_trainables()), Path(moments.checkpoint) / OPTIMIZER_STATE
    own = grouped_names(names, group_labels(model.vlm_lora.trainable.parameters))
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
        known = _by_name(stored, grouped_names(names, moments.labels))
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, UnpicklingError) as error:
        raise CheckpointError(
            f"The optimizer's state in {file} cannot be kept: {error}",
            fix="Leave --keep-optimizer out to start with a fresh one.",
        ) from None
    state = {index: known[name] for index, name in enumerate(name for group in own for name in group) if name in known}
    inner.load_state_dict({"state": state, "param_groups": inner.state_dict()["param_groups"]})


def _by_name(stored: Mapping[str, Any], names: list[list[str]]) -> dict[str, Any]:
    """Return the state of each parameter by its name."""
    groups: list[list[int]] = [group["params"] for group in stored["param_groups"]]
    if [len(group) for group in groups] != [len(group) for group in names]:
        raise ValueError(
            f"its groups have {[len(group) for group in groups]} parameters, those of its recipe "
            f"{[len(group) for group in names]}"
        )
    pairs = [pair for group in map(zip, groups, names) for pair in group]
    return {name: stored["state"][index] for index, name in pairs if index in stored["state"]}
