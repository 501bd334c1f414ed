"""What was written: a recipe in any of its forms, as the document that it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora_plugin.documents import leaves, merge, value_at
from vlm_lora_plugin.errors import DocumentError, HardwareError, RecipeError
from vlm_lora_plugin.hardware import parse_hardware
from vlm_lora_plugin.outside.display import shown
from vlm_lora_plugin.outside.files import is_file, reason, why_unusable
from vlm_lora_plugin.outside.trees import check_tree
from vlm_lora_plugin.outside.yaml_text import parse_yaml, read_yaml
from vlm_lora_plugin.recipe.optimizer import RATE_KEYS
from vlm_lora_plugin.recipe.schema import Recipe
from vlm_lora_plugin.recipe.sources import Source

RecipeSource = Recipe | Mapping[str, Any] | str | Path
"""A recipe in any form: a Recipe, a mapping, a path to a YAML file, or the name of a preset."""

_ABSENT = object()


@dataclass(frozen=True)
class Layer:
    """One part of what was written.

    Attributes:
        recipe: Its keys and values, checked; only those that were written are set.
        source: Who wrote it.
        decided: Who had set each of its values, where it was resolved before; a default's key is missing. None for
            one that was not.
    """

    recipe: Recipe
    source: Source
    decided: Mapping[str, Source] | None = None

    def document(self) -> dict[str, Any]:
        """Return what was written in it, and no more."""
        return self.recipe.model_dump(exclude_unset=True)


@dataclass(frozen=True)
class RecipeDocument:
    """What was written: a recipe and what is laid over it, checked key by key. No family is asked.

    Attributes:
        layers: The recipe, then what is laid over it; later ones win.
        names_recipe: Whether a recipe was given at all; without, a family's default preset is meant.
    """

    layers: tuple[Layer, ...]
    names_recipe: bool

    @classmethod
    def read(
        cls,
        source: RecipeSource | None,
        overrides: Mapping[str, Any] | None = None,
        *,
        overridden_by: str = "the settings laid over it",
    ) -> RecipeDocument:
        """Read a recipe in any form.

        Args:
            source: The recipe; None means the default preset of whichever family it will be for.
            overrides: A document laid over it.
            overridden_by: Who wrote ``overrides``, for messages.

        Raises:
            RecipeError: It cannot be read, or a key or value in it is unknown.
        """
        written = cls((), names_recipe=False)
        if source is not None:
            by = str(source) if isinstance(source, (str, Path)) else "the recipe"
            written = cls((Layer(Recipe.parse(read_recipe(source), source=by), Source("user", by)),), names_recipe=True)
        return written.under(overrides, overridden_by) if overrides else written

    @classmethod
    def recorded(cls, document: Mapping[str, Any], decided: Mapping[str, Source], by: str) -> RecipeDocument:
        """Read a recipe that was resolved before, with who set each of its values.

        Args:
            document: Every value, defaults included; all of them stay as they are when it is resolved again.
            decided: Who set them, by dotted key; a default's key is missing.
            by: Where it was kept, for messages.

        Raises:
            RecipeError: A key or value in it is unknown.
        """
        layer = Layer(Recipe.parse(document, source=by), Source("user", by), dict(decided))
        return cls((layer,), names_recipe=True)

    @classmethod
    def as_trained(cls, document: Mapping[str, Any], of: str, by: str) -> RecipeDocument:
        """Read a recipe that something was trained with, when nothing is known of who set its values.

        None of them counts as the user's: what was not refused then is not refused now.

        Args:
            document: Every value, defaults included.
            of: What was trained, ``the job as it was started``.
            by: Where it was kept, for messages.

        Raises:
            RecipeError: A key or value in it is unknown.
        """
        kept = Recipe.parse(document, source=by)
        keys = [*(key for key, _ in leaves(kept.document())), *(f"rules.{number}" for number in range(len(kept.rules)))]
        return cls.recorded(kept.document(), dict.fromkeys(keys, Source("preset", f"of {of}")), by)

    def under(self, overrides: Mapping[str, Any], by: str) -> RecipeDocument:
        """Return it with a document laid over it.

        Raises:
            RecipeError: A key or value of ``overrides`` is unknown.
        """
        layer = Layer(Recipe.parse(overrides, source=by), Source("user", by))
        return RecipeDocument((*self.layers, layer), self.names_recipe)

    @property
    def preset(self) -> str | None:
        """The preset that it names, the last one where several are named."""
        return next((layer.recipe.preset for layer in reversed(self.layers) if layer.recipe.preset), None)

    def decided(self, sources: Mapping[str, Source]) -> dict[str, Source]:
        """Return sources with those that were known before in the place of whoever keeps them now.

        Args:
            sources: Who set each value, by dotted key, as :class:`Stacked` has them.
        """
        known = {layer.source: layer.decided for layer in self.layers if layer.decided is not None}
        named = {key: known[source].get(key) if source in known else source for key, source in sources.items()}
        return {key: source for key, source in named.items() if source is not None}

    def says(self, key: str) -> bool:
        """Return whether it sets a dotted key itself, rather than leaving it to a preset or a default."""
        return any(value_at(layer.document(), key, _ABSENT) is not _ABSENT for layer in self.layers)


@dataclass(frozen=True)
class Stacked:
    """Layers laid over each other.

    Attributes:
        document: All keys but the rules.
        rules: The rules in order; components are rules, too.
        sources: Who set each value, by dotted key; rules by number, ``rules.0``.
    """

    document: dict[str, Any]
    rules: list[dict[str, Any]]
    sources: dict[str, Source]

    @classmethod
    def of(cls, layers: Iterable[tuple[dict[str, Any], Source]]) -> Stacked:
        """Lay documents over each other, later ones winning; rules add up."""
        merged: dict[str, Any] = {}
        rules: list[dict[str, Any]] = []
        found: dict[str, Source] = {}
        by_rule: list[Source] = []
        for document, source in layers:
            rest = {key: value for key, value in document.items() if key not in ("components", "rules")}
            own = [{"component": name, "means": means} for name, means in document.get("components", {}).items()]
            own += document.get("rules", ())
            rules += own
            by_rule += [source] * len(own)
            found |= dict.fromkeys((key for key, _ in leaves(rest)), source)
            merged = lay(merged, rest)
        sources = {key: found[key] for key, _ in leaves(merged) if key in found}
        return cls(merged, rules, sources | {f"rules.{number}": source for number, source in enumerate(by_rule)})


def read_recipe(source: RecipeSource) -> dict[str, Any]:
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
            f"A {type(source).__name__} is not a recipe",
            fix="Give a mapping, a Recipe, a path to a YAML file or a preset's name.",
        )
    path = Path(source)
    if path.suffix.lower() not in {".yaml", ".yml"}:
        if is_file(path):
            raise RecipeError(f"{path} is not a recipe: its name does not end in .yaml", fix="Rename it to .yaml.")
        if isinstance(source, Path) or path.name != source:  # a folder, a pipe, or a path to nothing
            raise RecipeError(
                f"There is no recipe file {path}: {why_unusable(path)}",
                fix="Give a path to a YAML file or a preset's name.",
            )
        return {"preset": source}
    try:
        document = read_yaml(path)
    except FileNotFoundError:
        raise RecipeError(
            f"There is no recipe file {path}", fix="Give a path to a YAML file or a preset's name."
        ) from None
    except OSError as error:
        raise RecipeError(
            f"The recipe {path} cannot be read: {reason(error)}", fix="Give the path of a YAML file."
        ) from None
    except DocumentError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(document, dict):
        held = "nothing" if document is None else f"a {type(document).__name__}"
        raise RecipeError(
            f"{path} holds {held}, not `key: value` lines",
            fix="Begin with `preset: lora`, for example; see docs/reference/recipe.md for every key.",
        )
    return document


def lay_over(source: RecipeSource, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return one document that means what a recipe with overrides means to :func:`resolve_recipe`.

    Args:
        source: A recipe in any form.
        overrides: A document laid over it.

    Raises:
        RecipeError: The recipe cannot be read, or one of the two has an unknown key or value.
    """
    written = RecipeDocument.read(source, overrides)
    layers = [(layer.recipe.model_dump(mode="json", exclude_unset=True), layer.source) for layer in written.layers]
    stacked = Stacked.of(layers)
    return {**stacked.document, "rules": stacked.rules} if stacked.rules else stacked.document


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn ``["optimizer.learning_rate=1e-4"]`` into a nested document; values are read as YAML.

    Below ``learning_rate`` and ``weight_decay`` the rest is one key: ``optimizer.learning_rate.vision.lora``. The
    short form ``hardware=3x24`` goes together with ``hardware.offload=true``, in either order.

    Raises:
        RecipeError: An assignment has no ``=``, no valid YAML, or goes below a value given before.
    """
    document: dict[str, Any] = {}
    for text in assignments:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise RecipeError(
                f"'{text}' is not an assignment", fix="Write key=value, for example optimizer.learning_rate=1e-4."
            )
        *parents, last = _steps(key.strip())
        here = document
        for parent in parents:
            here = here.setdefault(parent, {})
            if not isinstance(here, dict):
                raise RecipeError(f"`{key}` goes below `{parent}`, which another assignment sets to {here!r}")
        try:
            read = parse_yaml(value)
        except DocumentError as error:
            raise RecipeError(f"The value of `{key}` is not valid YAML: {shown(value)}", fix=str(error)) from None
        if (*parents, last) == ("hardware",) and isinstance(read, str):
            read = {**(document.get("hardware") or {}), **_machine(read)}
        here[last] = read
    try:
        check_tree(document)
    except DocumentError as error:
        raise RecipeError(f"An assignment goes too deep: {error}", fix="No key has more than four parts.") from None
    return document


def _machine(text: str) -> dict[str, Any]:
    try:
        machine = parse_hardware(text)
    except HardwareError as error:
        raise RecipeError(f"`hardware`: {error.what}", fix=error.fix) from None
    return {"gpus": machine.gpus, "gpu_memory": machine.gpu_memory}


def _steps(key: str) -> list[str]:
    steps = key.split(".")
    for at, step in enumerate(steps[:-1], start=1):
        if step in RATE_KEYS:
            return [*steps[:at], ".".join(steps[at:])]
    return steps


def lay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return one recipe document laid over another; a table of rates with a ``default`` replaces the one below."""
    return merge(base, over, replaces=lambda key, value: key in RATE_KEYS and "default" in value)
