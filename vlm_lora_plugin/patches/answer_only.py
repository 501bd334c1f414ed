"""Logits of the supervised positions alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from vlm_lora_plugin.contract import Patch
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models.loss import IGNORED, next_tokens, token_loss
from vlm_lora_plugin.patches.wrapping import wrap_method

_NEEDED = ("labels", "num_items_in_batch", "return_dict")


def answer_only_logits(head: str = "lm_head") -> Patch:
    """Return the patch that computes logits only where a label is, in training.

    The logits of a batch are ``[B, T, V]``, mostly of prompt and image positions that the loss ignores; with
    their fp32 copy and gradient they are often the largest tensors of a step. In training with labels the head
    then sees the N supervised hidden states as one ``[N, C]``, and the output's ``logits`` is None. Without
    labels, and in evaluation mode, nothing changes.

    Args:
        head: Name of the module that turns hidden states ``[B, T, C]``, its first argument, into logits. The
            model's ``forward`` must take ``labels``, ``num_items_in_batch`` and ``return_dict``, and its loss
            must be :func:`vlm_lora_plugin.models.loss.causal_lm_loss`.
    """
    return Patch(
        name="answer-only logits",
        reason="no logits for positions without a label",
        apply=partial(_apply, head),
    )


def _apply(head: str, model: nn.Module) -> Callable[[], None]:
    signature = inspect.signature(model.forward)
    lacking = [name for name in _NEEDED if name not in signature.parameters]
    if head not in dict(model.named_modules()) or lacking:
        raise ModelError(
            f"This {type(model).__name__} has another structure: "
            + (f"its forward takes no {', '.join(lacking)}" if lacking else f"it has no {head}"),
            fix="Load the model with vlm_lora_plugin.load.",
        )
    return wrap_method(model, "forward", partial(_leaner, head, signature))


def _leaner(
    head: str, signature: inspect.Signature, model: nn.Module, plain: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    given = signature.bind(*args, **kwargs)
    labels = given.arguments.get("labels")
    if labels is None or not model.training:
        return plain(*args, **kwargs)
    targets = next_tokens(labels)
    supervised = targets != IGNORED
    count, as_tuple = given.arguments.get("num_items_in_batch"), given.arguments.get("return_dict") is False
    given.arguments.update(labels=None, num_items_in_batch=None, return_dict=True)
    chosen = model.get_submodule(head).register_forward_pre_hook(partial(_choose, supervised))
    try:
        outputs = plain(*given.args, **given.kwargs)
    finally:
        chosen.remove()
    loss = token_loss(outputs.logits, targets[supervised].to(outputs.logits.device), count)
    rest = {name: value for name, value in outputs.items() if name not in ("loss", "logits")}
    result = type(outputs)(loss=loss, logits=None, **rest)
    return result.to_tuple() if as_tuple else result


def _choose(supervised: torch.Tensor, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden, *rest = inputs
    if hidden.shape[:-1] != supervised.shape:
        raise ModelError(
            f"The head is given hidden states of the shape {tuple(hidden.shape)} for labels {tuple(supervised.shape)}",
            why="With labels every position's hidden state is needed.",
            fix="Leave logits_to_keep out where labels are given.",
        )
    return (hidden[supervised.to(hidden.device)], *rest)
