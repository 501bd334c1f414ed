"""Every function of ms-swift that this package wraps, and why: the whole list is :data:`HOOKS`.

Each wrapper is put in once for the whole process and passes straight through to the original where the tuner is not
``vlm_lora`` or the model folder is not one of our families'. What our trainer overrides by a method of its own stands
in :mod:`vlm_lora_plugin.frameworks.swift.trainer`, a subclass: nothing of Swift's own trainers is replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Literal

from vlm_lora_plugin.frameworks.swift.asking import beside_the_file, only_for_our_families
from vlm_lora_plugin.frameworks.swift.command_line import looking_at_the_model
from vlm_lora_plugin.frameworks.swift.pipeline import choosing_trainer, reading_data
from vlm_lora_plugin.frameworks.swift.recognition import reading_folders
from vlm_lora_plugin.frameworks.swift.wrapping import wrap

When = Literal["registering", "training", "asking", "merging"]
"""The moment at which a function is wrapped: each needs modules of Swift's that are not imported before."""


@dataclass(frozen=True)
class Hook:
    """One wrapped function of ms-swift.

    Attributes:
        when: When it is wrapped.
        module: The module of Swift's that owns it.
        owner: The class in that module; empty where the module itself owns it.
        name: Its name.
        wrapper: Given the original, returns what stands in its place.
        why: What it is for.
        copies: Also replaced in every module that has imported it by name.
    """

    when: When
    module: str
    owner: str
    name: str
    wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]
    why: str
    copies: bool = False


def install_hooks(when: When) -> None:
    """Wrap what :data:`HOOKS` lists for a moment; a second call changes nothing."""
    for hook in HOOKS:
        if hook.when == when:
            for owner in _owners(hook):
                wrap(owner, hook.name, hook.wrapper)


def _owners(hook: Hook) -> list[Any]:
    module = import_module(hook.module)
    if hook.owner:
        return [getattr(module, hook.owner)]
    if not hook.copies:
        return [module]
    original = getattr(module, hook.name)
    return [each for each in list(sys.modules.values()) if vars(each).get(hook.name) is original]


def _merging(original: Callable[..., None]) -> Callable[..., None]:
    from vlm_lora_plugin.frameworks.swift.merging import merging_everything  # it needs torch, which training does later

    return merging_everything(original)


HOOKS = (
    Hook(
        "registering",
        "swift.model.model_meta",
        "",
        "_get_model_info",
        reading_folders,
        "Swift goes by a folder's name, and runs the folder's code to read its config",
    ),
    Hook(
        "registering",
        "swift.arguments.base_args.model_args",
        "ModelArguments",
        "__post_init__",
        partial(
            looking_at_the_model,
            when_training=partial(install_hooks, "training"),
            when_asking=partial(install_hooks, "asking"),
            when_merging=partial(install_hooks, "merging"),
        ),
        "the recipe meets the options when the model is known and nothing is derived from them yet",
    ),
    Hook(
        "registering",
        "swift.trainers",
        "TrainerFactory",
        "get_trainer_cls",
        choosing_trainer,
        "Swift has no table of trainers",
    ),
    Hook(
        "asking",
        "swift.pipelines.infer.infer",
        "SwiftInfer",
        "_prepare_val_dataset",
        only_for_our_families,
        "says for which runs images are looked up beside the data file",
    ),
    Hook(
        "asking",
        "swift.dataset.loader",
        "DatasetLoader",
        "_load_dataset_path",
        beside_the_file,
        "Swift looks for relative images in the working directory, training beside the data file",
    ),
    Hook(
        "training",
        "swift.pipelines.train.sft",
        "SwiftSft",
        "_prepare_dataset",
        reading_data,
        "the same rows in the same order as vlm-lora train reads",
    ),
    Hook(
        "merging",
        "swift.pipelines.export",
        "",
        "merge_lora",
        _merging,
        "Swift's own folds PEFT's LoRA alone",
        copies=True,
    ),
)
"""What is wrapped, in the order in which it is done."""
