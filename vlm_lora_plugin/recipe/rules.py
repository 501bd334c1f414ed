"""Rules: what of a model learns, and by which means."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from vlm_lora_plugin.recipe.limits import told
from vlm_lora_plugin.recipe.section import Names, Section
from vlm_lora_plugin.vocabulary import ComponentName, Means


def _as_ranges(value: object) -> object:
    parts = [value] if isinstance(value, (int, str)) and not isinstance(value, bool) else value
    if not isinstance(parts, (list, tuple)):
        return value
    ranges = [text.strip() for part in parts for text in str(part).split(",")]
    for text in ranges:
        found = LAYER_RANGE.fullmatch(text)
        if found is None:
            raise ValueError(f"{told(text)} is not a range of layers; write 3, 0-3 or 10-, joined by commas")
        if found["last"] and int(found["last"]) < int(found["first"]):
            raise ValueError(f"the range of layers '{text}' ends before it begins")
    return ranges


LAYER_RANGE = re.compile(r"(?P<first>\d{1,6})(?P<open>-(?P<last>\d{1,6})?)?")
"""``3``, ``0-3`` or ``10-``."""

Layers = Annotated[tuple[str, ...], BeforeValidator(_as_ranges, json_schema_input_type=int | str | tuple[str, ...])]


class Rule(Section):
    """One line of the selection; of all rules that match a parameter the last one decides.

    ``pattern`` is a regular expression that must match the *whole* name of a parameter or module (PEFT's
    convention for ``target_modules`` given as a string); a matched module stands for everything below it.
    Of several conditions (``component``, ``pattern``, ``layers``, ``module_types``) all must hold. One that
    matches nothing together with the others is an error. A pattern has a second for all names of a model.
    """

    component: ComponentName | None = Field(None, description="All parameters of this component.")
    pattern: Names = Field((), description="Regular expressions for whole names; any of them may match.")
    exclude: Names = Field((), description="Regular expressions for whole names that this rule leaves alone.")
    layers: Layers = Field(
        (),
        description="The component's repeating blocks, counted from 0: `3`, `0-3` (both included), `10-` "
        "(to the last), joined by commas. Needs `component`.",
    )
    module_types: Names = Field(
        (),
        description="Class names of modules, their own or a base class's: `Linear`, `LayerNorm`; any may match. A "
        "matched module stands for everything below it. Layers inside a model's own LoRA do not count.",
    )
    means: Means = Field(description="frozen, lora or full.")
    group: str | None = Field(
        None,
        min_length=1,
        description="Learning-rate group, a key of `optimizer.learning_rate` and `optimizer.weight_decay`; the "
        "default joins component and means: `vision.lora`.",
    )

    @model_validator(mode="after")
    def _names_something(self) -> Rule:
        if self.component is None and not self.pattern and not self.module_types:
            raise ValueError("a rule needs a component, a pattern or module_types")
        if self.layers and self.component is None:
            raise ValueError("`layers` counts the blocks of a component, so the rule needs a `component`")
        return self
