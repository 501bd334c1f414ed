"""Logits of the supervised positions alone."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from vlm_lora_plugin.contract import Patch
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models.loss import IGNORED, next_tokens, token_loss
from vlm_lora_plugin.patches.wrapping import wrap_method

KEY = "answer_only_loss"
_EMPTY: Mapping[str, Any] = {}


def answer_only_logits(head: str = "lm_head") -> Patch:
    """Return the patch that computes logits only where a label is, in training.

    The logits of a batch are ``[B, T, V]``, mostly of prompt and image positions that the loss ignores; with
    their fp32 copy and gradient they are often the largest tensors of a step. In training with labels the head
    then sees the N supervised hidden states as one ``[N, C]``, and the output's ``logits`` is None. Without
    labels, and in evaluation mode, nothing changes.

    Args:
        head: Name of the module that turns hidden states ``[B, T, C]``, its first argument, into logits. The loss
            of the model must be that of :func:`vlm_lora_plugin.models.loss.causal_lm_loss`, as transformers'
            ``ForCausalLMLoss`` is; see :func:`why_not_answer_only`.
    """
    return Patch(
        name="answer-only logits",
        reason="no logits for positions without a label",
        apply=partial(_apply, head),
        serves=KEY,
    )


def why_not_answer_only(model: nn.Module, head: str = "lm_head") -> str | None:
    """Return why :func:`answer_only_logits` cannot work in a model, the end of a sentence; or None where it can.

    It can where ``forward`` names ``logits_to_keep``, so that the head is made for some positions alone, or was seen
    to shorten its logits in one forward pass of six tokens without weights. ``**kwargs`` says nothing: every model
    of transformers takes them.
    """
    named = inspect.signature(model.forward).parameters
    config = getattr(model, "config", None)
    loss = getattr(getattr(model, "loss_function", None), "__name__", _CAUSAL_LOSS)
    if "labels" not in named:
        return "its forward takes no labels"
    if head not in dict(model.named_modules()):
        return f"it has no {head}"
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder, whose labels are not shifted"
    if "num_items_in_batch" not in named and loss != _CAUSAL_LOSS:
        return f"its loss is {loss}, not the causal one"
    if "num_items_in_batch" not in named and getattr(config, "output_router_logits", False):
        return "its loss also balances experts (config.output_router_logits)"
    return None if "logits_to_keep" in named else _why_not_shortened(model, head)


_CAUSAL_LOSS = "ForCausalLMLoss"


@torch.no_grad()
def _why_not_shortened(model: nn.Module, head: str) -> str | None:
    """Return None where logits were seen to become as few as the hidden states that the head is given."""
    outline = "its forward does not name logits_to_keep, and in a forward pass without weights"
    try:
        if any(not parameter.is_meta for parameter in model.parameters()):
            with torch.device("meta"):
                model = type(model)(copy.deepcopy(model.config))
        training = model.training
        last = model.get_submodule(head).register_forward_pre_hook(lambda _, inputs: (inputs[0][:, -1], *inputs[1:]))
        try:
            logits = model.eval()(input_ids=torch.ones(2, 3, dtype=torch.long, device="meta")).logits
        finally:
            last.remove()
            model.train(training)
    except Exception as error:  # model code of others may raise anything
        return f"{outline} it raised {type(error).__name__}: {error}"
    return None if logits.ndim == 2 and len(logits) == 2 else f"{outline} its logits stayed {tuple(logits.shape)}"


def _apply(head: str, model: nn.Module) -> Callable[[], None]:
    why = why_not_answer_only(model, head)
    if why is not None:
        raise ModelError(f"This {type(model).__name__} cannot leave logits out: {why}", fix=f"Set {KEY}: false.")
    return wrap_method(model, "forward", partial(_leaner, head, inspect.signature(model.forward)))


def _leaner(
    head: str, signature: inspect.Signature, model: nn.Module, plain: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    given = signature.bind(*args, **kwargs).arguments
    extra = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
    said = {**given.get(extra, _EMPTY), **{name: value for name, value in given.items() if name != extra}}
    labels = said.get("labels")
    if labels is None or not model.training:
        return plain(*args, **kwargs)
    targets = next_tokens(labels)
    supervised = targets != IGNORED
    wanted = signature.bind(*args, **kwargs)
    instead = {"labels": None, "num_items_in_batch": None, "return_dict": True}
    taken = {name: value for name, value in instead.items() if name in signature.parameters}
    wanted.arguments.update(taken)
    if extra:
        rest = {name: value for name, value in given.get(extra, _EMPTY).items() if name not in instead}
        wanted.arguments[extra] = rest if "return_dict" in taken else {**rest, "return_dict": True}
    chosen = model.get_submodule(head).register_forward_pre_hook(partial(_choose, supervised))
    try:
        outputs = plain(*wanted.args, **wanted.kwargs)
    finally:
        chosen.remove()
    own = targets[supervised]
    if outputs.logits.shape[:-1] != own.shape:
        raise ModelError(
            f"{KEY}: {len(own)} positions have a label, the logits of this {type(model).__name__} are "
            f"{tuple(outputs.logits.shape)}",
            why="Its forward does not make logits of what the head is given alone.",
            fix=f"Set {KEY}: false.",
        )
    loss = token_loss(outputs.logits, own.to(outputs.logits.device), said.get("num_items_in_batch"))
    others = {name: value for name, value in outputs.items() if name not in ("loss", "logits")}
    result = type(outputs)(loss=loss, logits=None, **others)
    return result.to_tuple() if said.get("return_dict") is False else result


def _choose(supervised: torch.Tensor, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden, *rest = inputs
    if hidden.shape[:-1] != supervised.shape:
        raise ModelError(
            f"The head is given hidden states of the shape {tuple(hidden.shape)} for labels {tuple(supervised.shape)}",
            why="With labels every position's hidden state is needed.",
            fix="Leave logits_to_keep out where labels are given.",
        )
    return (hidden[supervised.to(hidden.device)], *rest)
