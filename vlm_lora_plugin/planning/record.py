"""Who set each value of a recipe, as it lies on disk beside the recipe, so that it is known again on resuming."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vlm_lora_plugin.documents import leaves
from vlm_lora_plugin.errors import DocumentError, OutputError
from vlm_lora_plugin.outside.files import reason
from vlm_lora_plugin.outside.json_text import read_json
from vlm_lora_plugin.recipe import HardwareSettings, Recipe, Source, SourceKind
from vlm_lora_plugin.selection.matching import describe

if TYPE_CHECKING:
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe


def sources_document(recipe: ResolvedRecipe) -> dict[str, dict[str, Any]]:
    """Return value, kind of source, who it is and why, by dotted key, of each value that is not a default."""
    values = _values(recipe)
    return {
        key: {"value": values.get(key), "source": source.kind, "by": source.by, "why": source.why}
        for key, source in recipe.sources.items()
    }


def sources_json(recipe: ResolvedRecipe) -> str:
    """Return :func:`sources_document` as the text that lies beside a job's recipe."""
    return json.dumps(sources_document(recipe), indent=2, ensure_ascii=False) + "\n"


def read_sources(file: Path, kept: Recipe) -> dict[str, Source] | None:
    """Read who set each value of a job's recipe.

    Args:
        file: What :func:`sources_json` was written to.
        kept: The recipe beside it. A value that is another than when the sources were written is the user's.

    Returns:
        The sources by dotted key, a default's missing; None for a job of a version that wrote none.

    Raises:
        OutputError: The file cannot be read.
    """
    try:
        return sources_of(read_json(file), kept, edited_in=file.with_name("recipe.yaml"))
    except FileNotFoundError:
        return None
    except (OSError, DocumentError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise OutputError(
            f"{file}, which tells who set each value of the job's recipe, cannot be read: {reason(error)}",
            why="Whether a setting without effect is refused or switched off depends on who asked for it.",
            fix="Remove the file: the job then goes on as it was started, and nothing in its recipe counts as yours.",
        ) from None


def sources_of(document: Mapping[str, Mapping[str, Any]], kept: Recipe, edited_in: Path | str) -> dict[str, Source]:
    """Return the sources that a :func:`sources_document` tells of a recipe's values.

    Args:
        document: What :func:`sources_document` returned.
        kept: The recipe.
        edited_in: Who set a value that is another than the document's.

    Raises:
        ValueError: It is not such a document.
    """
    values, defaults = _values(kept), _values(Recipe(hardware=None if kept.hardware is None else HardwareSettings()))
    sources = {}
    for key, entry in document.items():
        source = Source(entry["source"], str(entry["by"]), str(entry["why"]))
        if source.kind not in get_args(SourceKind):
            raise ValueError(f"{key}: {source.kind!r} is not a kind of source")
        sources[key] = source if values.get(key) == entry["value"] else Source("user", str(edited_in))
    for key, value in values.items():
        if key not in sources and key not in _INFORMATION and value != defaults.get(key):
            sources[key] = Source("user", str(edited_in))
    return sources


_INFORMATION = ("family", "preset", "origin", "rules")
"""Keys that nobody sets once a recipe is resolved; rules are counted one by one."""


def _values(recipe: Recipe) -> dict[str, Any]:
    rules = {f"rules.{number}": describe(rule) for number, rule in enumerate(recipe.rules)}
    return {**dict(leaves(recipe.document())), **rules}
