"""Where the recipe meets Swift's command line.

Swift reads its arguments in one go and imports the plugin file in the middle of it, so this happens inside:
after the model folder is known, before anything is derived from the options.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm_lora_plugin.errors import SwiftError
from vlm_lora_plugin.frameworks.swift.families import family_of_type
from vlm_lora_plugin.frameworks.swift.folder_arguments import check_folder_arguments
from vlm_lora_plugin.frameworks.swift.names import TUNER
from vlm_lora_plugin.frameworks.swift.options.explicit import given_options
from vlm_lora_plugin.frameworks.swift.recognition import own_type
from vlm_lora_plugin.frameworks.swift.refusals import without_our_tuner
from vlm_lora_plugin.plugins.manager import get_manager

_ENGINES = ("infer_backend", "sampler_engine", "tuner_backend")
_RUN_FOLDERS = ("vllm", "sglang", "lmdeploy", "unsloth")


def looking_at_the_model(
    original: Callable[[Any], None],
    *,
    when_training: Callable[[], None],
    when_asking: Callable[[], None],
    when_merging: Callable[[], None],
) -> Callable[[Any], None]:
    """Return the step in which Swift looks at the model, with the recipe laid over Swift's options.

    Args:
        original: Swift's own.
        when_training: Called where ``swift sft`` trains with our tuner.
        when_asking: Called where ``swift infer`` answers, with any tuner.
        when_merging: Called where an adapter of ours is merged.
    """

    def __post_init__(self: Any) -> None:
        check_folder_arguments(self)
        _check_engine(self)
        from swift.arguments import SftArguments

        trains = isinstance(self, SftArguments)
        if any(kind.__name__ == "InferArguments" for kind in type(self).__mro__):
            when_asking()
        if getattr(self, "tuner_type", None) != TUNER:
            without_our_tuner(original, self, trains=trains)
            return
        if trains and type(self) is not SftArguments:
            raise SwiftError(
                f"--tuner_type {TUNER} works with `swift sft`, not with {type(self).__name__}",
                why="The loss would be another than the recipe's.",
                fix="Use `swift sft`.",
            )
        given = given_options(self) if trains else {}
        _name_type(self)
        original(self)
        family_of_type(self.model_type)
        if trains:
            from vlm_lora_plugin.frameworks.swift.options.apply import apply_recipe

            apply_recipe(self, given)
            when_training()
        elif getattr(self, "merge_lora", False):
            when_merging()

    return __post_init__


def _check_engine(arguments: Any) -> None:
    """Refuse engines that load a model folder themselves, by the code that it brings."""
    for option in _ENGINES:
        engine = getattr(arguments, option, None)
        if engine in _RUN_FOLDERS and own_type(Path(str(arguments.model)).expanduser(), arguments.model_type):
            raise SwiftError(
                f"--{option} {engine} cannot load {arguments.model}",
                why="It would run the code that the model folder brings, and knows nothing of this family.",
                fix=f"Leave --{option} out.",
            )


def _name_type(arguments: Any) -> None:
    """Say which type a local folder is, before Swift guesses by its name or architecture."""
    folder = Path(str(arguments.model)).expanduser()
    if not folder.is_dir():
        return
    arguments.model = os.path.abspath(folder)  # args.json must still name it when read elsewhere
    if arguments.model_type is None:
        arguments.model_type = get_manager().family_of_folder(folder).name
