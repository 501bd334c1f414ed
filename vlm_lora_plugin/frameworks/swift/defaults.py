"""Swift's options take the recipe's values, unless the command line gives others.

The plugin file is imported while Swift's arguments are being completed, and what reads them comes later. So
``BaseArguments._init_model_kwargs``, which follows the import at once, is wrapped; it acts on training with our
tuner only.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import SUPPRESS
from functools import wraps
from pathlib import Path
from typing import Any

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.frameworks.swift.arguments import RECIPE_KEY, TUNER_TYPE, training_options

_MARK = "_vlm_lora_defaults"

# Options that say the same thing in several words: one of them given, none of them is set.
_TOGETHER = (
    {"warmup_steps", "warmup_ratio"},
    {"num_train_epochs", "max_steps", "max_epochs"},
    {"eval_strategy", "eval_steps"},
    {"save_strategy", "save_steps"},
    {"bf16", "fp16"},
)


def install_defaults() -> None:
    """Wrap Swift's arguments; a second call changes nothing."""
    from swift.arguments import BaseArguments

    original = BaseArguments._init_model_kwargs
    if getattr(original, _MARK, False):
        return

    @wraps(original)
    def _init_model_kwargs(self: Any) -> None:
        original(self)
        from swift.arguments import SftArguments

        if isinstance(self, SftArguments) and self.tuner_type == TUNER_TYPE:
            take_recipe(self, given_options(type(self)))

    setattr(_init_model_kwargs, _MARK, True)
    BaseArguments._init_model_kwargs = _init_model_kwargs


def given_options(arguments_class: type) -> set[str]:
    """Return the names of the options that stand on Swift's command line, also those given by a beginning.

    Args:
        arguments_class: Swift's class of arguments.
    """
    from swift.utils.utils import _patch_get_type_hints
    from transformers import HfArgumentParser

    with _patch_get_type_hints():
        parser = HfArgumentParser([arguments_class])
    for action in parser._actions:
        action.default = SUPPRESS
    through_ray = os.environ.get("RAY_SWIFT_ARGS")
    found, _ = parser.parse_known_args(json.loads(through_ray) if through_ray else sys.argv[1:])
    return set(vars(found))


def take_recipe(arguments: Any, given: set[str]) -> None:
    """Set every option that the recipe determines and the command line does not.

    Args:
        arguments: Swift's ``SftArguments``, before they are completed.
        given: Names of the options on the command line.

    Raises:
        ModelError: No model is named, or its folder is of no known family.
        RecipeError: The recipe cannot be used.
    """
    from vlm_lora_plugin.job.look import DTYPES
    from vlm_lora_plugin.job.preflight import default_dtype
    from vlm_lora_plugin.manager import get_manager
    from vlm_lora_plugin.recipe import resolve_recipe

    if not arguments.model:
        raise ModelError("Swift was given no model", fix="Give --model FOLDER.")
    family = get_manager().family_of_folder(Path(arguments.model))
    recipe = resolve_recipe(read_text(arguments.model_kwargs.get(RECIPE_KEY)), family)
    evaluate = bool(arguments.val_dataset or arguments.cached_val_dataset or arguments.split_dataset_ratio > 0)
    dtype = arguments.torch_dtype if "torch_dtype" in given else DTYPES[default_dtype()]
    taken = given.union(*(group for group in _TOGETHER if group & given))
    for name, value in training_options(recipe, dtype=dtype, evaluate=evaluate).items():
        if name not in taken:
            setattr(arguments, name, value)


def read_text(text: str | None) -> Any:
    """Return what ``--model_kwargs`` holds as a recipe: a document where it is one, else a path or preset's name."""
    return json.loads(text) if text is not None and text.lstrip().startswith("{") else text
