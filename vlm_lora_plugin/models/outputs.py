"""What every family's forward pass begins and ends with: inputs that contradict each other, logits and loss."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, cast

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import ModelOutput

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models.dtypes import to_weight_dtype
from vlm_lora_plugin.models.loss import causal_lm_loss

_PASSED_ON = ("past_key_values", "hidden_states", "attentions")


def refuse_contradicting_inputs(
    model: str,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    pixel_values: Sized | None,
) -> None:
    """Refuse ids and embeddings together, neither of them, and images without ids to say where they stand.

    Raises:
        ModelError: That is so; ``model`` is what it is called there.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ModelError(f"{model} takes input_ids or inputs_embeds, exactly one of them")
    if input_ids is None and pixel_values is not None and len(pixel_values):
        raise ModelError("With inputs_embeds the image places are unknown", fix="Give input_ids instead.")


def head_outputs(
    trunk: ModelOutput,
    head: nn.Module,
    *,
    labels: torch.Tensor | None,
    num_items_in_batch: torch.Tensor | int | None,
    logits_to_keep: int | torch.Tensor,
    return_dict: bool,
) -> CausalLMOutputWithPast | tuple[object, ...]:
    """Return logits, and the loss where there are labels, from the trunk's last hidden states.

    Args:
        trunk: Holds ``last_hidden_state`` [B, T, C], and what else is passed on.
        head: Maps ``[B, T, C]`` to logits ``[B, T, V]``.
        labels: ``[B, T]`` integers, -100 where nothing is supervised, or None.
        num_items_in_batch: See :func:`vlm_lora_plugin.models.loss.causal_lm_loss`.
        logits_to_keep: Compute the logits of the last n positions, or of these positions; 0 is all.
        return_dict: False returns a tuple.
    """
    hidden = cast(Any, trunk).last_hidden_state
    kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    logits = head(to_weight_dtype(hidden[:, kept], cast(torch.Tensor, head.weight)))
    loss = None if labels is None else causal_lm_loss(logits, labels.to(logits.device), num_items_in_batch)
    passed_on = {key: trunk[key] for key in _PASSED_ON if key in trunk}
    result = CausalLMOutputWithPast(loss=cast(torch.FloatTensor | None, loss), logits=logits, **passed_on)
    return result if return_dict else result.to_tuple()
