"""The section `evaluation`."""

from __future__ import annotations

from pydantic import Field

from vlm_lora_plugin.recipe.section import Section


class EvaluationSettings(Section):
    """What is measured on validation data, besides the loss."""

    metric: str | None = Field(
        "exact_match",
        description="`exact_match` of greedy answers, or `package.module:function`, which is given the answers and "
        "the examples and returns a number or numbers by name; null: the loss alone.",
    )
    max_rows: int | None = Field(100, ge=1, description="Rows that are answered, the first ones; null: all.")
    max_new_tokens: int = Field(32, ge=1, description="Longest answer in tokens.")
    sample_answers: int = Field(
        5,
        ge=0,
        description="Answers that are shown after training, of the validation data or, without it, of the training "
        "data; 0: none.",
    )
