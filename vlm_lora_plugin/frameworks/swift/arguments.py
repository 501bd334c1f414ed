"""What a recipe says, in the words of Swift's command line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_lora_plugin.errors import SwiftError
from vlm_lora_plugin.frameworks.swift.location import plugin_file
from vlm_lora_plugin.frameworks.swift.names import RECIPE_KEY, TUNER

REGISTER = "--custom_register_path"
"""Swift adds these files to those of ``--external_plugins``, which a command may have already; a second one of those
would replace the first."""

_SPLIT = re.compile(r"[\s*?\[\]]")

RecipeText = str | Path | Mapping[str, Any]
"""A path, the name of a preset, or a document."""


def plugin_arguments(recipe: RecipeText) -> list[str]:
    """Return what an existing ``swift sft`` command needs in order to train what a recipe says.

    Swift reads the recipe's learning rates, batches and the rest from there; options of the command win where the
    recipe allows it.

    Args:
        recipe: A path, which is made absolute, the name of a preset, or a document.
    """
    if isinstance(recipe, Mapping):
        text = json.dumps(recipe)
    else:
        text = str(Path(recipe).resolve()) if Path(recipe).is_file() else str(recipe)
    kwargs = json.dumps({RECIPE_KEY: text}, separators=(",", ":"))
    return [REGISTER, str(plugin_file()), "--tuner_type", TUNER, "--model_kwargs", kwargs]


def shell_words(arguments: Sequence[str]) -> str:
    """Return arguments as text that a shell splits into them where it stands as ``$(...)``, without any quotes.

    A shell splits such text at blanks and expands ``*``, ``?`` and ``[``, but takes quotes as they are. Inside JSON
    these characters are written as escapes.

    Raises:
        SwiftError: An argument that is not JSON, such as a path, has such a character.
    """
    return " ".join(map(_shell_word, arguments))


def _shell_word(argument: str) -> str:
    if not _SPLIT.search(argument):
        return argument
    if not argument.startswith("{"):
        raise SwiftError(
            f"'{argument}' cannot be handed over by $(...): a shell would split or expand it",
            fix="Run `vlm-lora swift sft ...` with --tuner_type and --model_kwargs instead, or install into a folder "
            "without blanks in its path.",
        )
    return _SPLIT.sub(lambda found: f"\\u{ord(found[0]):04x}", argument)
