"""Learning-rate groups of a prepared model, in every Trainer.

Groups must exist when the optimizer is made: added later they break resuming. So
:mod:`vlm_lora_plugin.frameworks.trainer.hooks` wraps ``Trainer.create_optimizer`` and calls what is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from vlm_lora_plugin.errors import TrainingError, listed
from vlm_lora_plugin.names import canonical_name
from vlm_lora_plugin.parallel.optimizer import held_parameters, keeps_fp32
from vlm_lora_plugin.parallel.sharding import full_shape
from vlm_lora_plugin.prepared.model import VlmLoraPeftModel

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

    from vlm_lora_plugin.recipe import OptimizerSettings
    from vlm_lora_plugin.selection.trainables import Trainable

ANY = ("", "")
"""Neither a component nor a means: what a table of rates says by default."""


def parameter_groups(model: VlmLoraPeftModel) -> list[dict[str, Any]]:
    """Return the optimizer's groups, each with its own ``lr`` and ``weight_decay``; none is empty.

    Parameters stand in the model's order, groups in the order of their first parameter. ``name`` is the
    recipe's group, ``<component>.<means>`` by default; it repeats where a group has two decays.
    """
    by_name = {parameter.name: parameter for parameter in model.vlm_lora.trainable.parameters}
    groups: dict[tuple[object, ...], dict[str, Any]] = {}
    for name, tensor in model.named_trainables().items():
        entry: Trainable = by_name[name]
        settings = {"name": entry.group, "lr": entry.learning_rate, "weight_decay": entry.weight_decay}
        groups.setdefault(_key(entry), {"params": [], **settings})["params"].append(tensor)
    return list(groups.values())


def _key(entry: Trainable) -> tuple[object, ...]:
    return (entry.component, entry.means, entry.group, entry.learning_rate, entry.weight_decay)


def group_labels(trainables: Iterable[Trainable]) -> dict[str, str]:
    """Return parameter name -> a text that is the same for those that :func:`parameter_groups` puts together."""
    return {entry.name: repr(_key(entry)) for entry in trainables}


def grouped_names(names: Iterable[str], labels: Mapping[str, str]) -> list[list[str]]:
    """Return the names that an optimizer made of :func:`parameter_groups` holds, group by group, in its order.

    Args:
        names: Of everything that learns, in the model's order.
        labels: What :func:`group_labels` returned.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(labels[name], []).append(name)
    return list(groups.values())


def verify_optimizer(model: VlmLoraPeftModel, optimizer: torch.optim.Optimizer) -> None:
    """Check that an optimizer holds exactly what the manifest lists, in fp32, at the recipe's rates.

    DeepSpeed's optimizers may hold parameters of 16 bit, for which they keep fp32 values themselves.

    Raises:
        TrainingError: A parameter is missing, frozen, strange to the model, of another dtype or at another rate.
    """
    wanted = {parameter.name: parameter for parameter in model.vlm_lora.trainable.parameters}
    names = {id(tensor): canonical_name(name) for name, tensor in model.named_parameters()}
    held: dict[str, Mapping[str, Any]] = {}
    for tensor, group in held_parameters(optimizer):
        held[names.get(id(tensor), f"a parameter of shape {full_shape(tensor)} from elsewhere")] = group
    tensors = model.named_trainables()
    learning = {canonical_name(name) for name, tensor in model.named_parameters() if tensor.requires_grad}
    problems = {
        "in the recipe, but not in the optimizer": sorted(wanted.keys() - held.keys()),
        "in the optimizer, but not in the recipe": sorted(held.keys() - wanted.keys()),
        "frozen since prepare": sorted(wanted.keys() - learning),
        "unfrozen since prepare": sorted(learning - wanted.keys()),
        "no longer fp32": [name for name, tensor in tensors.items() if not keeps_fp32(tensor)],
    }
    for key, attribute in (("lr", "learning_rate"), ("weight_decay", "weight_decay")):
        problems[f"at another {attribute} than the recipe's"] = [
            f"{name} ({group.get(f'initial_{key}', group[key])} instead of {getattr(wanted[name], attribute)})"
            for name, group in held.items()
            if name in wanted and group.get(f"initial_{key}", group[key]) != getattr(wanted[name], attribute)
        ]
    for problem, found in problems.items():
        if found:
            raise TrainingError(
                f"Parameters {problem}: {listed(found)}",
                why="The run would not train what the recipe says.",
                fix="Build the Trainer after prepare, without an optimizer of its own, and change no requires_grad.",
            )


def follow_schedule(schedule: Any, optimizer: torch.optim.Optimizer) -> None:
    """Set the rates that a schedule gives for its step, where it is another than the optimizer's state was kept with.

    A checkpoint brings the rates of the schedule that it was written under. Where a job is trained longer, its
    first step would be taken at the last of those, which for a cosine is 0. Resumed as it was, nothing changes.

    Args:
        schedule: The Trainer's; nothing is done with one that is not a function of the step.
        optimizer: The Trainer's.
    """
    if not isinstance(schedule, LambdaLR):
        return
    for group, rate, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = rate * factor(schedule.last_epoch)


def make_optimizer(trainer: Trainer, model: VlmLoraPeftModel) -> torch.optim.Optimizer:
    """Return a Trainer's optimizer with the recipe's groups.

    Raises:
        TrainingError: An argument contradicts the recipe, or the optimizer chooses its parameters itself.
    """
    settings = model.vlm_lora.recipe.optimizer
    _check_arguments(trainer.args, settings, {p.learning_rate for p in model.vlm_lora.trainable.parameters})
    if trainer.optimizer_cls_and_kwargs is not None:
        optimizer_class, options = trainer.optimizer_cls_and_kwargs
    else:
        optimizer_class, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    own_parameters = {"params", "model", "optimizer_dict"} & options.keys()
    if own_parameters or not _takes_groups(optimizer_class):
        raise TrainingError(
            f"The optimizer '{trainer.args.optim}' chooses its parameters itself and cannot follow the recipe's groups",
            fix="Use optim='adamw_torch' or another plain optimizer.",
        )
    taken = set(options)
    if trainer.optimizer_cls_and_kwargs is not None:
        _check_options(options, settings)
        taken |= signature(optimizer_class).parameters.keys()
    betas = (settings.adam_beta1, settings.adam_beta2)
    recipes = {"lr": settings.rate(*ANY), "betas": betas, "eps": settings.adam_epsilon}
    options = {**options, **{key: value for key, value in recipes.items() if key == "lr" or key in taken}}
    optimizer: torch.optim.Optimizer = optimizer_class(parameter_groups(model), **options)
    return optimizer


def _check_options(options: Mapping[str, Any], settings: OptimizerSettings) -> None:
    """Refuse keyword arguments of a user's ``optimizer_cls_and_kwargs`` that are not the recipe's values."""
    wanted = {
        "lr": ("learning_rate", settings.rate(*ANY)),
        "weight_decay": ("weight_decay", settings.weight_decay_of(*ANY)),
        "betas": ("adam_beta1 and adam_beta2", (settings.adam_beta1, settings.adam_beta2)),
        "eps": ("adam_epsilon", settings.adam_epsilon),
    }
    for key in options.keys() & wanted.keys():
        name, value = wanted[key]
        given = tuple(options[key]) if key == "betas" else options[key]
        if given != value:
            raise TrainingError(
                f"optimizer_cls_and_kwargs has {key}={options[key]}, the recipe's optimizer.{name} is {value}",
                why="The optimizer follows the recipe, so the argument would be ignored.",
                fix=f"Set it in the recipe and leave {key} out of optimizer_cls_and_kwargs.",
            )


def _takes_groups(optimizer_class: Any) -> bool:
    return isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)


def _check_arguments(arguments: TrainingArguments, settings: OptimizerSettings, rates: set[float]) -> None:
    """Refuse TrainingArguments that were set to something else than the recipe's values.

    A value that still is the dataclass's default counts as not given.
    """
    allowed: Mapping[str, set[float]] = {
        "learning_rate": {settings.rate(*ANY), *(rates if len(rates) == 1 else ())},
        "weight_decay": {settings.weight_decay_of(*ANY)},
        "adam_beta1": {settings.adam_beta1},
        "adam_beta2": {settings.adam_beta2},
        "adam_epsilon": {settings.adam_epsilon},
    }
    defaults = {field.name: field.default for field in fields(arguments)}
    for name, values in allowed.items():
        given = getattr(arguments, name)
        if given != defaults[name] and given not in values:
            raise TrainingError(
                f"TrainingArguments.{name} is {given}, the recipe's optimizer.{name} is {getattr(settings, name)}",
                why="The optimizer follows the recipe, so the argument would be ignored.",
                fix=f"Set optimizer.{name} in the recipe and leave the argument out.",
            )
