"""Text-only batches of a model that also sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.selection.names import canonical_name
from vlm_lora_plugin.types import Patch

PARTITIONED = "ds_id"
"""Attribute of a parameter that ZeRO-3 has divided over the ranks."""


def keep_text_only_trainable(
    trunk: str,
    unused: Sequence[str],
    images: str = "pixel_values",
    *,
    embeddings: str | None = None,
    dummy: Callable[[], torch.Tensor] | None = None,
) -> Patch:
    """Return the patch that lets a batch without an image train.

    Such a batch reaches no vision parameter. Where only those learn, its loss has no gradient at all, and
    DistributedDataParallel waits for gradients that never come. In training, the patch adds zero times their
    sum to the hidden states, so that every one gets a gradient of zero.

    Under ZeRO-3 the ranks gather each module's parameters together, in the order of the forward pass. A rank
    whose batch has no image would gather others than those that have one, and all of them hang. There, in
    training and in evaluation, an image that nobody looks at goes through the tower where a real one would: right
    behind the token embeddings, to which zero times its tokens is added.

    Args:
        trunk: Name of the module whose output holds ``last_hidden_state`` and which is called with the images.
        unused: Names of the modules, and of single parameters, that a text-only batch does not reach.
        images: Keyword argument of ``trunk`` that is None or empty for a text-only batch.
        embeddings: Name of the module inside ``trunk`` that embeds the tokens, before the images are encoded.
        dummy: Encodes an image of any content through the modules' own forward and returns its tokens. Without
            it and ``embeddings``, text-only batches under ZeRO-3 are left to hang.
    """
    return Patch(
        name="text-only batches",
        reason="every trainable parameter gets a gradient, of zero, without an image",
        apply=partial(_apply, trunk, tuple(unused), images, embeddings, dummy),
    )


def _apply(
    trunk: str,
    unused: Sequence[str],
    images: str,
    embeddings: str | None,
    dummy: Callable[[], torch.Tensor] | None,
    model: nn.Module,
) -> Callable[[], None]:
    try:
        module = model.get_submodule(trunk)
        parameters = _parameters_of(model, unused)
        embedding = None if embeddings is None else model.get_submodule(embeddings)
    except AttributeError as error:
        raise ModelError(
            f"This {type(model).__name__} has another structure: {error}",
            fix="Load the model with vlm_lora_plugin.load.",
        ) from None
    blind = False  # whether the batch in the trunk is a prompt without an image, under ZeRO-3

    def look(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal blind
        cache = kwargs.get("past_key_values")
        is_prompt = cache is None or cache.get_seq_length() == 0
        blind = is_prompt and not _given(kwargs, images) and _partitioned(parameters)

    def pretend(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        nonlocal blind
        if not blind or dummy is None:
            return output
        blind = False
        return output + (dummy().sum() * 0.0).to(output.device, output.dtype)

    def touch(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if not module.training or not torch.is_grad_enabled() or _given(kwargs, images) or _partitioned(parameters):
            return output
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        if learning:
            hidden = output.last_hidden_state
            zero = sum((p.sum() * 0.0 for p in learning), torch.zeros((), device=learning[0].device))
            output.last_hidden_state = hidden + zero.to(hidden.device, hidden.dtype)
        return output

    # On the trunk and not on the model: PEFT calls the model's forward directly, past its hooks.
    handles = [module.register_forward_hook(touch, with_kwargs=True)]
    if embedding is not None and dummy is not None:
        handles.append(module.register_forward_pre_hook(look, with_kwargs=True))
        handles.append(embedding.register_forward_hook(pretend))

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


def _given(kwargs: dict[str, Any], images: str) -> bool:
    return kwargs.get(images) is not None and len(kwargs[images]) > 0


def _partitioned(parameters: Sequence[nn.Parameter]) -> bool:
    return any(hasattr(parameter, PARTITIONED) for parameter in parameters)


def _parameters_of(model: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    """Return the parameters of the modules, and the single parameters, of these names.

    PEFT may have wrapped a parameter's layer; its canonical name is the one it had before.
    """
    modules = dict(model.named_modules())
    single = {canonical_name(path): parameter for path, parameter in model.named_parameters()}
    found: list[nn.Parameter] = []
    for name in names:
        if name not in modules and name not in single:
            raise AttributeError(f"it has no module or parameter {name}")
        found += modules[name].parameters() if name in modules else [single[name]]
    return found
