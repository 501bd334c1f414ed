"""The recipe of a Swift run: how it is given, and where every part of the run finds it.

Swift turns ``--model_kwargs '{"vlm_lora_recipe": ...}'`` into an environment variable. Once the command line
has been read, the process keeps the resolved recipe for loader, tuner and the rest; the variable then holds it as
JSON, for worker processes.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.errors import DocumentError, DuplicateKeyError, RecipeError
from vlm_lora_plugin.frameworks.swift.names import RECIPE_VARIABLE
from vlm_lora_plugin.outside.json_text import parse_json
from vlm_lora_plugin.outside.yaml_text import parse_yaml
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.planning.resolved import ResolvedRecipe
from vlm_lora_plugin.plugins.manager import get_manager

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Family

_kept: dict[str, ResolvedRecipe] = {}
"""The run's resolved recipe by the variable's text, so that another text is another run's."""


def given_recipe() -> ResolvedRecipe | Mapping[str, Any] | str | None:
    """Return the run's recipe: resolved, where this process has done so; else as it was given.

    That is a path, a preset's name or a document; None for none.

    Raises:
        RecipeError: A document was given that cannot be read.
    """
    text = os.environ.get(RECIPE_VARIABLE, "").strip()
    if text in _kept:
        return _kept[text]
    if not text.startswith("{"):
        return text or None
    try:
        document = _read(text)
    except DocumentError as error:
        raise RecipeError(f"The recipe given in {RECIPE_VARIABLE} cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise RecipeError(f"The recipe given in {RECIPE_VARIABLE} is not a JSON object")
    return document


def run_recipe(family: Family, folder: Path) -> ResolvedRecipe | None:
    """Return the run's resolved recipe, or None where none was given.

    In training the options' check has resolved and kept it. Elsewhere (``swift infer``) whoever asks first resolves
    it, and it is kept.

    Args:
        family: Whose model it is.
        folder: The model folder.

    Raises:
        RecipeError: It cannot be read, or does not fit the family.
    """
    given = given_recipe()
    if given is None or isinstance(given, ResolvedRecipe):
        return given
    resolved = resolve_recipe(given, family, architecture=partial(get_manager().architecture_of_folder, family, folder))
    keep_recipe(resolved)
    return resolved


def keep_recipe(recipe: ResolvedRecipe) -> None:
    """Make a resolved recipe the one that the rest of the run finds."""
    text = os.environ[RECIPE_VARIABLE] = json.dumps(recipe.document())
    _kept.clear()
    _kept[text] = recipe


def _read(text: str) -> Any:
    # A document nested in --model_kwargs reaches the variable as Python prints it, null as None.
    try:
        return parse_json(text)
    except DuplicateKeyError:
        raise
    except DocumentError:
        pass
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        return ast.literal_eval(text)
    return parse_yaml(text)
