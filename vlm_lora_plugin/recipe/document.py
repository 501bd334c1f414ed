"""What was written: a recipe in any of its forms, as the document that it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from vlm_lora_plugin.documents import merge
from vlm_lora_plugin.errors import RecipeError
from vlm_lora_plugin.recipe.schema import RATE_KEYS, Recipe


def read_recipe(source: Recipe | Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """Return the document behind a recipe given in any form, holding only what was set in it.

    Args:
        source: A Recipe, a mapping, a path to a YAML file, or the name of a preset.

    Raises:
        RecipeError: The file is missing or no mapping.
    """
    if isinstance(source, Recipe):
        return source.model_dump(mode="json", exclude_unset=True)
    if isinstance(source, Mapping):
        return dict(source)
    if not isinstance(source, (str, Path)):
        raise RecipeError(
            f"A {type(source).__name__} is no recipe",
            fix="Give a mapping, a Recipe, a path to a YAML file or a preset's name.",
        )
    path = Path(source)
    if path.suffix.lower() not in {".yaml", ".yml"}:
        if path.is_file():
            raise RecipeError(f"{path} is no recipe: its name does not end in .yaml", fix="Rename it to .yaml.")
        if isinstance(source, Path) or path.name != source:  # a folder, or a path to nothing
            raise RecipeError(f"There is no recipe file {path}", fix="Give a path to a YAML file or a preset's name.")
        return {"preset": source}
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RecipeError(
            f"There is no recipe file {path}", fix="Give a path to a YAML file or a preset's name."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(document, dict):
        held = "nothing" if document is None else f"a {type(document).__name__}"
        raise RecipeError(
            f"{path} holds {held}, not `key: value` lines",
            fix="Begin with `preset: lora`, for example; see docs/reference/recipe.md for every key.",
        )
    return document


def lay_over(source: Recipe | Mapping[str, Any] | str | Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return one document that means what a recipe with overrides means to :func:`resolve_recipe`.

    Args:
        source: A recipe in any form.
        overrides: A document laid over it.

    Raises:
        RecipeError: The recipe cannot be read, or one of the two has an unknown key or value.
    """
    documents = ((read_recipe(source), str(source)), (overrides, "override"))
    parsed = [Recipe.parse(document, source=label) for document, label in documents]
    merged, rules = stacked([recipe.model_dump(mode="json", exclude_unset=True) for recipe in parsed])
    return {**merged, "rules": rules} if rules else merged


def stacked(layers: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return all keys but the rules, later layers winning, and the rules in order; components are rules, too."""
    merged: dict[str, Any] = {}
    rules: list[dict[str, Any]] = []
    for layer in layers:
        rules += [{"component": name, "means": means} for name, means in layer.pop("components", {}).items()]
        rules += layer.pop("rules", ())
        merged = lay(merged, layer)
    return merged, rules


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn ``["optimizer.learning_rate=1e-4"]`` into a nested document; values are read as YAML.

    Below ``learning_rate`` and ``weight_decay`` the rest is one key: ``optimizer.learning_rate.vision.lora``.

    Raises:
        RecipeError: An assignment has no ``=``, no valid YAML, or goes below a value given before.
    """
    document: dict[str, Any] = {}
    for text in assignments:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise RecipeError(
                f"'{text}' is no assignment", fix="Write key=value, for example optimizer.learning_rate=1e-4."
            )
        *parents, last = _steps(key.strip())
        here = document
        for parent in parents:
            here = here.setdefault(parent, {})
            if not isinstance(here, dict):
                raise RecipeError(f"`{key}` goes below `{parent}`, which another assignment sets to {here!r}")
        try:
            here[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"The value of `{key}` is not valid YAML: {value}", fix=str(error)) from None
    return document


def _steps(key: str) -> list[str]:
    steps = key.split(".")
    for at, step in enumerate(steps[:-1], start=1):
        if step in RATE_KEYS:
            return [*steps[:at], ".".join(steps[at:])]
    return steps


def lay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return one recipe document laid over another; a table of rates with a ``default`` replaces the one below."""
    return merge(base, over, replaces=lambda key, value: key in RATE_KEYS and "default" in value)
