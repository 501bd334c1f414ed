"""A recipe that is resolved: every value decided, and who decided it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from vlm_lora_plugin.contract import Architecture
from vlm_lora_plugin.recipe import Recipe, RecipeDocument, Source
from vlm_lora_plugin.recipe.sources import DEFAULT

if TYPE_CHECKING:
    from vlm_lora_plugin.planning.fitting import Fit
    from vlm_lora_plugin.vocabulary import Hardware


_OFF = "off, it would have no effect: "


class ResolvedRecipe(Recipe):
    """A recipe that stands on its own: preset and shorthand expanded, what its hardware sets filled in.

    It is made by :func:`~vlm_lora_plugin.planning.resolve.resolve`, once for a process, and handed on from there:
    whatever takes a recipe takes this one as it is. It has a recipe's keys and values, and who set each of them.
    Two are equal when their values are, whoever set them. Written as YAML and read again, every value counts as
    the user's, unless the sources are kept beside it (:mod:`vlm_lora_plugin.planning.record`).
    """

    _sources: Mapping[str, Source] = PrivateAttr(default_factory=dict)
    _written: RecipeDocument = PrivateAttr(default_factory=lambda: RecipeDocument((), names_recipe=False))
    _architecture: Architecture = PrivateAttr(default=Architecture(()))
    _fit: Fit | None = PrivateAttr(default=None)
    _adapter_settings: dict[Hardware, Mapping[str, Any]] = PrivateAttr(default_factory=dict)

    @classmethod
    def of(
        cls,
        document: Mapping[str, Any],
        sources: Mapping[str, Source],
        written: RecipeDocument,
        architecture: Architecture,
        fit: Fit | None = None,
        adapter_settings: Mapping[Hardware, Mapping[str, Any]] | None = None,
    ) -> ResolvedRecipe:
        """Check values and put them together with where they come from.

        Args:
            document: The values.
            sources: Who set each of them, by dotted key; what is missing is a default.
            written: What they were made of.
            architecture: What the model is made of.
            fit: What the hardware sets, with reasons; None without hardware.
            adapter_settings: What the family's ``deepspeed_config`` answered, by machine.

        Raises:
            RecipeError: A value is not one of its key's.
        """
        recipe = cls.parse(document)
        recipe._sources, recipe._written, recipe._fit = dict(sources), written, fit
        recipe._architecture = architecture
        recipe._adapter_settings = dict(adapter_settings or {})
        return recipe

    def __eq__(self, other: object) -> bool:
        """Compare values alone."""
        return isinstance(other, Recipe) and self.document() == other.document()

    __hash__ = None  # type: ignore[assignment]  # it holds dicts

    def without(self, idle: Mapping[str, str]) -> ResolvedRecipe:
        """Return the recipe with some of its switches off.

        Args:
            idle: Why each would have no effect, by dotted key.
        """
        if not idle:
            return self
        document = self.model_dump(exclude_unset=True)
        for key in idle:
            *tables, name = key.split(".")
            place = document
            for table in tables:
                place = place[table]
            place[name] = False
        off = {key: Source("default", why=_OFF + why.removeprefix(_OFF)) for key, why in idle.items()}
        sources = {**self._sources, **off}
        return ResolvedRecipe.of(
            document, sources, self._written, self._architecture, self._fit, self._adapter_settings
        )

    @property
    def sources(self) -> Mapping[str, Source]:
        """Who set each value that is not a default, by dotted key; rules by number, ``rules.0``."""
        return self._sources

    @property
    def written(self) -> RecipeDocument:
        """What it was made of."""
        return self._written

    @property
    def architecture(self) -> Architecture:
        """What the model that it is for is made of."""
        return self._architecture

    @property
    def fit(self) -> Fit | None:
        """What the hardware sets, and what was set in its place; None where the recipe names no hardware."""
        return self._fit

    @property
    def adapter_settings(self) -> dict[Hardware, Mapping[str, Any]]:
        """What the family's ``deepspeed_config`` answered, by machine, so that it is asked once for each."""
        return self._adapter_settings

    @property
    def offloads(self) -> bool:
        """Whether its hardware keeps ZeRO-3's shards of the weights in host memory."""
        return self.hardware is not None and self.hardware.offload

    def source(self, key: str) -> Source:
        """Return who set the value of a dotted key; of a table of rates, who set its ``default``."""
        return self._sources.get(key, self._sources.get(f"{key}.default", DEFAULT))

    def by_user(self, key: str) -> bool:
        """Return whether the user set it, rather than a preset, the hardware or nobody."""
        return self.source(key).kind == "user"

    def said(self, key: str) -> str:
        """Return a key, its value and who set it, as one reads it in a message: ``seed is 3 (job.yaml)``."""
        return f"{super().said(key)} ({self.source(key)})"
