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


def keep_text_only_trainable(trunk: str, unused: Sequence[str], images: str = "pixel_values") -> Patch:
    """Return the patch that lets a batch without an image train.

    Such a batch reaches no vision parameter. Where only those learn, its loss has no gradient at all, and
    DistributedDataParallel waits for gradients that never come. In training, the patch adds zero times their
    sum to the hidden states, so that every one gets a gradient of zero.

    Args:
        trunk: Name of the module whose output holds ``last_hidden_state`` and which is called with the images.
        unused: Names of the modules, and of single parameters, that a text-only batch does not reach.
        images: Keyword argument of ``trunk`` that is None or empty for a text-only batch.
    """
    return Patch(
        name="text-only batches",
        reason="every trainable parameter gets a gradient, of zero, without an image",
        apply=partial(_apply, trunk, tuple(unused), images),
    )


def _apply(trunk: str, unused: Sequence[str], images: str, model: nn.Module) -> Callable[[], None]:
    try:
        module = model.get_submodule(trunk)
        parts, single = _named(model, unused)
    except AttributeError as error:
        raise ModelError(
            f"This {type(model).__name__} has another structure: {error}",
            fix="Load the model with vlm_lora_plugin.load.",
        ) from None

    def touch(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        given = kwargs.get(images)
        if not module.training or not torch.is_grad_enabled() or (given is not None and len(given)):
            return output
        # Asked of the modules each time: PEFT may have added LoRA since the patch was applied.
        parameters = [*single, *(parameter for part in parts for parameter in part.parameters())]
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        if learning:
            hidden = output.last_hidden_state
            zero = sum((p.sum() * 0.0 for p in learning), torch.zeros((), device=learning[0].device))
            output.last_hidden_state = hidden + zero.to(hidden.device, hidden.dtype)
        return output

    # On the trunk and not on the model: PEFT calls the model's forward directly, past its hooks.
    return module.register_forward_hook(touch, with_kwargs=True).remove


def _named(model: nn.Module, names: Sequence[str]) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """Return the modules and the single parameters of these names.

    PEFT may have wrapped a parameter's layer; its canonical name is the one it had before.

    Raises:
        AttributeError: The model has neither a module nor a parameter of a name.
    """
    modules = dict(model.named_modules())
    single = {canonical_name(path): parameter for path, parameter in model.named_parameters()}
    for name in names:
        if name not in modules and name not in single:
            raise AttributeError(f"it has no module or parameter {name}")
    parts = [modules[name] for name in names if name in modules]
    return parts, [single[name] for name in names if name not in modules]
