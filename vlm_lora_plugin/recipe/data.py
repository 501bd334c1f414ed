"""The section `data`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from vlm_lora_plugin.recipe.section import Names, Section

_TURN_KEYS = ("messages", "conversations", "role", "content", "from", "value", "query", "response", "history")


class DataSettings(Section):
    """How examples become tokens."""

    max_length: int = Field(2048, ge=8, description="Tokens of one example, images included.")
    truncation_strategy: Literal["raise", "right"] = Field(
        "raise",
        description="raise: an example that is too long is an error. right: cut its end, never inside an image.",
    )
    on_bad_sample: Literal["error", "skip"] = Field(
        "error", description="error: a row that cannot be used stops the job. skip: leave it out, and count it."
    )
    allow_outside_images: bool = Field(
        False, description="Whether image files may lie outside the data file's folder, links followed."
    )
    max_image_pixels: int | None = Field(
        50_000_000, ge=1, description="Width x height beyond which an image is a bad sample; null: Pillow's limit."
    )
    exif_transpose: bool = Field(
        False,
        description="Turn images as their EXIF data say, as viewers do. The published models were trained without.",
    )
    processor: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="Settings of the family's own processor, such as `hd_num`, the most crops that XComposer cuts an "
        "image into. `vlm-lora presets` lists them.",
    )
    loss_on: Literal["all", "last"] = Field(
        "all",
        description="Answers that are learnt from: all of a row, or the last one. A turn's own `loss` or `weight` "
        "decides before it.",
    )
    upstream_labels: bool = Field(
        False,
        description="In rows of the family's own form, learn from what the published code's label mask says, not from "
        "the answers. They differ where the first turn is not the user's.",
    )
    ignore_keys: Names = Field(
        (), description="Keys of rows and turns to read as if they were not there; `vlm-lora data-check` counts them."
    )

    @field_validator("ignore_keys")
    @classmethod
    def _rows_keep_their_turns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        needed = [key for key in value if key in _TURN_KEYS]
        if needed:
            raise ValueError(f"`{needed[0]}` holds the conversation itself, a row is nothing without it")
        return value

    @model_validator(mode="after")
    def _one_choice_of_labels(self) -> DataSettings:
        if self.upstream_labels and self.loss_on != "all":
            raise ValueError("upstream_labels learns from what upstream does, which knows no loss_on: last")
        return self
