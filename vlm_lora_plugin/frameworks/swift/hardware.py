"""The recipe's hardware in a Swift run: its processes, its dtype, and its DeepSpeed document."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.documents import differences
from vlm_lora_plugin.errors import SwiftError, listed
from vlm_lora_plugin.parallel.launcher import check_started
from vlm_lora_plugin.planning.deepspeed import deepspeed_settings
from vlm_lora_plugin.planning.dtypes import DTYPES, wanted_dtype

if TYPE_CHECKING:
    from swift.arguments import SftArguments

    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe
    from vlm_lora_plugin.recipe import Recipe


def apply_dtype(arguments: SftArguments, given: Mapping[str, Any], recipe: Recipe) -> None:
    """Set the dtype of the frozen weights where none was given.

    Raises:
        HardwareError: bf16 was given, which the recipe's hardware lacks.
    """
    if "torch_dtype" not in given:
        arguments.torch_dtype = arguments.model_info.torch_dtype = DTYPES[wanted_dtype(None, recipe)]
        return
    wanted_dtype(next((name for name, dtype in DTYPES.items() if dtype == arguments.torch_dtype), None), recipe)


def apply_hardware(arguments: SftArguments, given: Mapping[str, Any], recipe: ResolvedRecipe, family: Family) -> None:
    """Check this process against the recipe's hardware, and give Swift its DeepSpeed document.

    A recipe without hardware leaves ``--deepspeed`` to the user.

    Raises:
        HardwareError: Another number of processes was started, DeepSpeed is missing, or a device computes in no bf16.
        SwiftError: Another document was given.
    """
    if recipe.hardware is None:
        return
    check_started(recipe)
    document = deepspeed_settings(recipe, family, recipe.hardware.machine())
    if "deepspeed" in given:
        _compare(given["deepspeed"], document)
    arguments.deepspeed = document


def _compare(given: Any, wanted: Mapping[str, Any] | None) -> None:
    """Refuse another document: a file, JSON, or one of Swift's names, whose documents are never the recipe's."""
    from swift.utils import json_parse_to_dict

    named = isinstance(given, str) and not given.lstrip().startswith("{") and not Path(given).is_file()
    found = given if named else json_parse_to_dict(given)
    if found == wanted:
        return
    if named or wanted is None:
        problem = f"--deepspeed {given}: the recipe's hardware {'makes its own document' if wanted else 'needs none'}"
    else:
        problem = (
            f"--deepspeed contradicts the recipe's hardware (given / recipe): {listed(differences(found, wanted))}"
        )
    raise SwiftError(
        problem,
        why="Only one of two documents can be trained with.",
        fix="Leave --deepspeed out; keys of your own go into the recipe's `deepspeed`.",
    )
