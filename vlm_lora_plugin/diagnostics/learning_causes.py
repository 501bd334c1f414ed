"""What most often lies behind parameters that do not learn."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from vlm_lora_plugin.errors import TrainingError, listed
from vlm_lora_plugin.selection.trainables import Trainable

SEEING = frozenset({"vision", "aligner"})
"""Components that learn through images alone."""

_CUT = (
    "The gradient is cut between the image features and the language model: they are written through `.data`, "
    "detached, or computed under torch.no_grad(). This part of the model would never learn."
)
_UNCALLED = (
    "No gradient reaches them: their layers are not called in the forward pass, or what they return is not used."
)
_ZERO = "The gradient that reaches them is exactly zero: something multiplies it by zero or masks it."
_NOTHING = "Nothing that is trained gets a gradient: no token is supervised, or the loss is detached from the model."


def no_gradient(
    dead: Collection[Trainable], alive: Iterable[Trainable], reached: Collection[str], window: str
) -> TrainingError:
    """Return the error for parameters without a gradient.

    Args:
        dead: Those whose gradient is zero or missing.
        alive: Those that have one.
        reached: Names that a gradient, of zero, has come to.
        window: When it was noticed, in words.
    """
    seen = {parameter.component for parameter in alive}
    silent = {parameter.component for parameter in dead}
    if not seen:
        why, fix = _NOTHING, "Check the labels of the batch, and whatever changes the model's forward."
    elif silent <= SEEING and silent.isdisjoint(seen):
        why, fix = _CUT, "Put the features in without `.data` and outside of no_grad, as torch.Tensor.index_put does."
    else:
        why = _ZERO if all(parameter.name in reached for parameter in dead) else _UNCALLED
        fix = "Leave them out of the recipe's rules (exclude), or repair the forward pass."
    return TrainingError(f"No gradient {window}: {listed(p.name for p in dead)}", why=why, fix=fix)


def image_gradient_cut() -> TrainingError:
    """Return the error for a loss of a batch with images that depends on nothing that is trained."""
    return TrainingError(
        "The loss of a batch with images depends on nothing that is trained",
        why=_CUT,
        fix="Put the features in without `.data` and outside of no_grad, as torch.Tensor.index_put does.",
    )


def not_finite(names: Iterable[str], window: str) -> TrainingError:
    """Return the error for gradients that are infinite or not a number."""
    return TrainingError(
        f"Gradients that are not finite {window}: {listed(names)}",
        why="One step with them makes the parameters NaN for good.",
        fix="Check the inputs for NaN; train in bfloat16 instead of float16; lower the learning rate.",
    )


def not_moved(group: str, names: Iterable[str], steps: int, rate: float) -> TrainingError:
    """Return the error for a group that stays where it was."""
    return TrainingError(
        f"Group {group} has not moved in {steps} steps whose learning rates add up to {rate:.1e}: {listed(names)}",
        why="It gets gradients, but the optimizer does not hold these tensors, or steps too small for fp32.",
        fix="Build the Trainer after prepare and replace no parameter; or raise the group's learning rate.",
    )


def loss_not_finite(keys: Collection[str], step: int) -> TrainingError:
    """Return the error for a run whose loss or gradient norm, by the names in its log, is infinite or NaN."""
    return TrainingError(
        f"The {' and the '.join(keys)} of step {step} is no longer finite",
        why="The parameters are NaN, or about to become so. A batch without a supervised token does it too.",
        fix="Go on from the last checkpoint before it; lower the learning rate; look at the data with "
        "vlm-lora data-check.",
    )
