"""What every section of a recipe is: strict, and bounded."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator

from vlm_lora_plugin.recipe.limits import beyond


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_list, json_schema_input_type=str | tuple[str, ...])]


class Section(BaseModel):
    """One mapping of keys that are known, with values of the right kind. It never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _switches_are_no_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``true`` for a number, which would count as 1, and numbers and words for a switch."""
        accepted = _plain_types(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and bool not in accepted:
            raise ValueError(f"{str(value).lower()} is not an accepted value")
        if accepted == (bool,) and not isinstance(value, bool):
            raise ValueError(f"{value!r:.80} is not an accepted value; write true or false")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _numbers_have_a_limit(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse numbers at which a library or the machine fails."""
        problem = beyond(str(info.field_name), value)
        if problem is not None:
            raise ValueError(problem)
        return value


def _plain_types(annotation: Any) -> tuple[Any, ...]:
    return (annotation, *getattr(annotation, "__args__", ()))
