"""Text-only batches of a model that also sees: they train, and leave no other rank waiting.

Such a batch reaches no vision parameter. In one process these are left without a gradient, as upstream leaves them, so
that an optimizer skips them; where nothing but vision learns, the loss would have none at all. Several processes wait
for each other's gradients (DistributedDataParallel), mix up whose gradient is whose (ZeRO-2, which reduces them in the
order in which they come), or wait for parts of weights (ZeRO-3, whose modules must be called equally often and in the
same order on all ranks, frozen or not).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from vlm_lora_plugin.contract import Patch
from vlm_lora_plugin.contract.architecture import PIXELS
from vlm_lora_plugin.contract.model import SplicesImages
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.names import canonical_name
from vlm_lora_plugin.parallel.agreement import in_group, several_ranks
from vlm_lora_plugin.parallel.sharding import is_sharded, optimizer_keeps
from vlm_lora_plugin.patches.wrapping import undo_all, wrap_method

TEXT_ONLY = "text-only batches"
"""Name of the patch. A family's own of this name takes the place of the core's."""

Look = Callable[[nn.Module, torch.Tensor], torch.Tensor]
"""Given a module and text embeddings, sends one made-up image through the vision modules just as the module does with
real ones, and returns its features, of any shape. Pixels are in the range of real ones."""

WITHOUT_IMAGES = SplicesImages.without_images.__name__
"""Method of the module that puts images among the embeddings ``[B, T, C]``. Its forward pass calls it where a prompt
has no image, at the place where it would put them, and goes on with what it returns."""


def keep_text_only_trainable(
    trunk: str,
    unused: Sequence[str],
    images: str = PIXELS,
    *,
    look: Look | None = None,
    splicer: str | None = None,
    zeroed: Sequence[str] = (),
) -> Patch:
    """Return the patch that lets a batch without an image train, in one process or several.

    In one process what the batch does not reach is left without a gradient. Where nothing else learns, a constant
    zero that wants one stands in for it, so that the loss can be sent backward. In several processes, and where
    ZeRO-3 shards the vision parameters, a made-up image takes the way of a real one at the same place of the forward
    pass, and zero times its features is added to the embeddings: so every rank calls the same modules in the same
    order and has the same graph, whatever its rows hold, and unreached parameters get a gradient of zero. It works
    only where all images of a batch go through the vision modules in one call. Unreached parameters also get a
    gradient of zero under ZeRO-1 and 2 in one process, whose gradients are one flat tensor; in a process that
    torchrun started alone, where DistributedDataParallel waits for each; and with an fp16 loss scale where nothing
    else learns, which refuses a step without any gradient.

    Args:
        trunk: Name of the module whose output holds ``last_hidden_state`` and which is called with the images.
        unused: Names of the modules, and of single parameters, that a text-only batch does not reach.
        images: Keyword argument of ``trunk`` that is None or empty for a text-only batch.
        look: Looks at a made-up image. Without it, several processes train under DistributedDataParallel alone.
        splicer: Name of the module with the method :data:`WITHOUT_IMAGES`, ``""`` for the model itself; None for
            the trunk.
        zeroed: Names among ``unused`` that get a gradient of zero in one process too, because upstream's own forward
            pass calls them for such a batch and multiplies the result by zero.
    """
    return Patch(
        name=TEXT_ONLY,
        reason="a batch without an image can be trained on; ranks never wait",
        apply=partial(_apply, trunk, tuple(unused), tuple(zeroed), images, look, trunk if splicer is None else splicer),
    )


def _apply(
    trunk: str,
    unused: Sequence[str],
    zeroed: Sequence[str],
    images: str,
    look: Look | None,
    splicer: str,
    model: nn.Module,
) -> Callable[[], None]:
    try:
        module = model.get_submodule(trunk)
        unreached, zeros = _Unreached(model, unused), _Unreached(model, zeroed)
        splicing = model.get_submodule(splicer)
        if look is not None and not isinstance(splicing, SplicesImages):
            raise AttributeError(f"{type(splicing).__name__} has no {WITHOUT_IMAGES}")
    except AttributeError as error:
        raise ModelError(
            f"This {type(model).__name__} has another structure: {error}",
            fix="Load the model with vlm_lora_plugin.load.",
        ) from None

    # On the trunk and not on the model: PEFT calls the model's forward directly, past its hooks.
    touch = partial(_touch, images, look is not None, unreached, zeros)
    undo: list[Callable[[], None]] = [module.register_forward_hook(touch, with_kwargs=True).remove]
    if look is not None:
        undo.append(wrap_method(splicing, WITHOUT_IMAGES, partial(_look_at_nothing, unreached, look)))
    return partial(undo_all, undo)


def _touch(
    images: str,
    looks: bool,
    unreached: _Unreached,
    zeros: _Unreached,
    module: nn.Module,
    args: Any,
    kwargs: dict[str, Any],
    output: Any,
) -> Any:
    given, learning = kwargs.get(images), unreached.learning()
    if given is not None and len(given):
        return output
    # Between passes a sharded parameter is empty: the gradient of its sum would be, too.
    several = several_ranks() or any(map(is_sharded, learning))
    if several and looks:
        return output
    if several:
        _refuse_zero(unreached)
    if not learning or not module.training or not torch.is_grad_enabled():
        return output
    hidden = output.last_hidden_state
    alone = not hidden.requires_grad
    if in_group() or several or any(map(optimizer_keeps, learning)) or (alone and _loss_is_scaled(hidden)):
        hidden = hidden + _zero_of(learning).to(hidden)
    elif zeros.learning():
        hidden = hidden + _zero_of(zeros.learning()).to(hidden)
    elif alone:
        hidden = hidden + hidden.new_zeros(()).requires_grad_()
    output.last_hidden_state = hidden
    return output


def _zero_of(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    """Return a zero that gives each of the parameters a gradient of zero."""
    return sum((p.sum() * 0.0 for p in parameters), torch.zeros((), device=parameters[0].device))


def _loss_is_scaled(hidden: torch.Tensor) -> bool:
    """Return whether the loss is scaled, as autocast to fp16 needs it."""
    device = hidden.device.type
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


def _look_at_nothing(
    unreached: _Unreached, look: Look, splicing: nn.Module, plain: Callable[..., torch.Tensor], embeds: torch.Tensor
) -> torch.Tensor:
    embeds = plain(embeds)
    trains = splicing.training and torch.is_grad_enabled() and bool(unreached.learning())
    in_parts, several = any(map(is_sharded, unreached.all())), several_ranks()
    if not ((trains and (several or in_parts)) or (several and in_parts)):
        return embeds
    return embeds + (look(splicing, embeds) * 0.0).sum().to(embeds.device, embeds.dtype)


class _Unreached:
    """The modules, and the single parameters, that a text-only batch does not reach.

    PEFT may have wrapped a parameter's layer; its canonical name is the one it had before. The modules are asked
    each time, because LoRA may be added to them later.

    Raises:
        AttributeError: The model has neither a module nor a parameter of a name.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        modules = dict(model.named_modules())
        single = {canonical_name(path): parameter for path, parameter in model.named_parameters()}
        for name in names:
            if name not in modules and name not in single:
                raise AttributeError(f"it has no module or parameter {name}")
        self._parts = [modules[name] if name in modules else single[name] for name in names]

    def all(self) -> list[nn.Parameter]:
        """Return their parameters."""
        found: list[nn.Parameter] = []
        for part in self._parts:
            found += part.parameters() if isinstance(part, nn.Module) else [part]
        return found

    def learning(self) -> list[nn.Parameter]:
        """Return those of their parameters that learn."""
        return [parameter for parameter in self.all() if parameter.requires_grad]


def _refuse_zero(unreached: _Unreached) -> None:
    """Refuse what ZeRO would mix up, or what would leave other ranks waiting.

    Raises:
        ModelError: ZeRO-3 shards parameters of these modules, or a stage of it trains some.
    """
    if any(map(is_sharded, unreached.all())) or any(map(optimizer_keeps, unreached.learning())):
        raise ModelError(
            "This family's batches without an image cannot be used under ZeRO",
            why="ZeRO-1 and 2 would add up gradients of different parameters, and under ZeRO-3 ranks wait forever, "
            "or find gradients of nothing.",
            fix="Train without DeepSpeed, or on rows that all have an image.",
        )
