"""A folder of reference numbers, as a family reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from vlm_lora_plugin.recipe import Recipe


@dataclass(frozen=True)
class GoldenCase:
    """One folder of reference numbers, turned into our model and inputs by a family's reader.

    Attributes:
        model: The freshly built model, dropout off, in the case's mode (train or eval), without its weights.
        weights: The file whose tensors are loaded strictly.
        inputs: Keyword arguments of ``model.forward``, labels included.
        stages: Runs ``model(**inputs)`` once and returns its output and the tensors of the stages named.
        recipes: Upstream's recipe name -> the recipe of ours, in any form, that must give the same trainable names.
        rtol: Relative tolerance that the family's README states.
        atol: Absolute tolerance that the family's README states.
    """

    model: PreTrainedModel
    weights: Path
    inputs: Mapping[str, Any]
    stages: Callable[[PreTrainedModel, Mapping[str, Any], Sequence[str]], tuple[Any, dict[str, torch.Tensor]]]
    recipes: Mapping[str, Recipe | Mapping[str, Any] | str]
    rtol: float = 1e-5
    atol: float = 1e-6
