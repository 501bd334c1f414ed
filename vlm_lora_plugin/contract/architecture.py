"""What a model is made of: its parts, its special modules, and how a batch holds its images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sized
from dataclasses import asdict, dataclass, replace
from typing import Any

from vlm_lora_plugin.vocabulary import Component, ComponentName

PIXELS = "pixel_values"
"""Key of a batch, and keyword argument of ``forward``, that holds the pixels unless an architecture names others."""


@dataclass(frozen=True)
class Architecture:
    """What a family plugin says about one model, loaded or on the meta device; one family may serve many.

    Attributes:
        components: The model's parts; every parameter belongs to exactly one.
        trunk: Name of the module whose output holds ``last_hidden_state`` [B, T, C].
        head: Name of the module that maps it to logits [B, T, V].
        fixed_tables: Regular expressions for whole names of parameters that are computed tables. They stay
            frozen unless the recipe sets ``train_fixed_tables``.
        image_only: Regular expressions for whole names of the modules, and of single parameters, that a
            text-only batch does not reach.
        image_keys: Keys of a batch that hold what the processor made of its images, the pixels first.
        image_counter: Counts the images of a batch that has the first of ``image_keys``; None where that
            value's length is their number, as in a tensor [N, 3, S, S] or a list of N tensors [3, H, W].
    """

    components: tuple[Component, ...]
    trunk: str = "model"
    head: str = "lm_head"
    fixed_tables: tuple[str, ...] = ()
    image_only: tuple[str, ...] = ()
    image_keys: tuple[str, ...] = (PIXELS,)
    image_counter: Callable[[Mapping[str, Any]], int] | None = None

    def component(self, name: ComponentName) -> Component | None:
        """Return the part of this name, or None where the model lacks it."""
        return next((part for part in self.components if part.name == name), None)

    @property
    def component_names(self) -> tuple[ComponentName, ...]:
        """Names of the model's parts."""
        return tuple(part.name for part in self.components)

    @property
    def repeating(self) -> tuple[ComponentName, ...]:
        """Parts with blocks that repeat: those that gradient checkpointing can be switched on for."""
        return tuple(part.name for part in self.components if part.blocks)

    def document(self) -> dict[str, Any]:
        """Return it as plain data, as JSON holds it, without the function that counts images."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(replace(self, image_counter=None))))
        del plain["image_counter"]
        return plain

    def count_images(self, batch: Mapping[str, Any]) -> int:
        """Return how many images a batch holds; 0 for a text-only one, which lacks the keys or has None there."""
        pixels: Sized | None = batch.get(self.image_keys[0]) if self.image_keys else None
        if pixels is None:
            return 0
        return len(pixels) if self.image_counter is None else self.image_counter(batch)
