"""What makes XComposer's forward pass leaner with the same result."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from vlm_lora_plugin.contract import Patch
from vlm_lora_plugin.models import canonical_name, is_sharded, several_ranks
from vlm_lora_plugin.patches import refuse_unknown_model, wrap_method
from vlm_lora_xcomposer.modeling import XComposerForCausalLM
from vlm_lora_xcomposer.names import PLORA_NAME, VISION_PREFIX

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

VIEWS_AT_A_TIME = 8
"""Views of 336 or 560 pixels that a frozen tower sees at a time; 55 crops of 336 need 1.5 GiB at once in upstream."""

EAGER, SDPA = "eager", "sdpa"


def patches(model: nn.Module) -> tuple[Patch, ...]:
    """Return what makes the forward pass leaner, in the order in which it is applied.

    Raises:
        ModelError: The model is not of this package, so its forward pass is unknown.
    """
    refuse_unknown_model(model, XComposerForCausalLM)
    return (
        *([Patch("fused attention", "no matrix of all pairs of tokens", _use_sdpa)] if _eager_configs(model) else []),
        Patch("views in chunks", f"a frozen tower sees {VIEWS_AT_A_TIME} views at a time, without a graph", _chunk),
        Patch("partial LoRA on every rank", "ranks without an image call the same layers", _mask_nothing),
    )


def _mask_nothing(model: nn.Module) -> Callable[[], None]:
    """Let partial LoRA act on no token of a batch without an image, rather than not act, where ranks wait for it."""
    partial_lora = [
        parameter for name, parameter in model.named_parameters() if re.fullmatch(PLORA_NAME, canonical_name(name))
    ]

    mask = partial(_nothing_masked, partial_lora)
    return model.get_submodule("model").register_forward_pre_hook(mask, with_kwargs=True).remove


def _nothing_masked(
    partial_lora: Sequence[nn.Parameter], trunk: nn.Module, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]] | None:
    learns = any(parameter.requires_grad for parameter in partial_lora)
    in_parts, several = any(map(is_sharded, partial_lora)), several_ranks()
    waits = (learns and (several or in_parts)) or (several and in_parts)
    if kwargs.get("image_mask") is not None or not waits:
        return None
    embeds = kwargs["inputs_embeds"]
    nowhere = torch.zeros(*embeds.shape[:2], 1, dtype=torch.bool, device=embeds.device)
    return args, {**kwargs, "image_mask": nowhere}


def _eager_configs(model: nn.Module) -> list[PreTrainedConfig]:
    """Return the configs of the parts whose attention computes the matrix of all pairs of tokens."""
    parts = (model.get_submodule("model").config, model.get_submodule(VISION_PREFIX).clip_config)
    configs = [cast("PreTrainedConfig", config) for config in parts]
    return [config for config in configs if config._attn_implementation == EAGER]


def _use_sdpa(model: nn.Module) -> Callable[[], None]:
    """Let PyTorch's fused kernels do what eager attention does; any other choice of the user stays."""
    changed = _eager_configs(model)
    _attend(SDPA, changed)
    return partial(_attend, EAGER, changed)


def _attend(by: str, configs: Sequence[PreTrainedConfig]) -> None:
    for config in configs:
        config._attn_implementation = by


def _chunk(model: nn.Module) -> Callable[[], None]:
    return wrap_method(model.get_submodule(VISION_PREFIX), "forward", _in_chunks)


def _in_chunks(tower: nn.Module, plain: Callable[[torch.Tensor], torch.Tensor], views: torch.Tensor) -> torch.Tensor:
    if any(parameter.requires_grad for parameter in tower.parameters()):
        return plain(views)
    with torch.no_grad():
        if any(map(is_sharded, tower.parameters())):  # ranks must call it equally often
            return plain(views)
        return torch.cat([plain(some) for some in torch.split(views, VIEWS_AT_A_TIME)])
