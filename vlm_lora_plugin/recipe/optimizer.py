"""The section `optimizer`, and its tables of rates."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from vlm_lora_plugin.errors import DocumentError
from vlm_lora_plugin.outside.yaml_text import parse_yaml
from vlm_lora_plugin.recipe.section import Section
from vlm_lora_plugin.vocabulary import COMPONENT_NAMES, MEANS


def _as_kwargs(value: object) -> object:
    """Read what Swift's command line gives as JSON text; a schedule without arguments has null in its files."""
    if isinstance(value, str):
        try:
            return parse_yaml(value)
        except DocumentError as error:
            raise ValueError(str(error)) from None
    return {} if value is None else value


SchedulerKwargs = Annotated[
    dict[str, bool | int | float | str | None], BeforeValidator(_as_kwargs, json_schema_input_type=dict[str, Any])
]

Rates = dict[str, float]


def _as_rates(value: object) -> object:
    return {"default": value} if isinstance(value, (int, float, str)) else value


COMMON_RATE_KEYS: tuple[str, ...] = (
    "default",
    *MEANS[1:],
    *COMPONENT_NAMES,
    *(f"{component}.{means}" for component in COMPONENT_NAMES for means in MEANS[1:]),
)
RateTable = Annotated[Rates, BeforeValidator(_as_rates, json_schema_input_type=float | Rates)]

RATE_KEYS = ("learning_rate", "weight_decay")
DEFAULT_LEARNING_RATE: Rates = {"default": 1e-5, "lora": 1e-4}
DEFAULT_WEIGHT_DECAY: Rates = {"default": 0.1}


class OptimizerSettings(Section):
    """AdamW and its schedule.

    ``learning_rate`` and ``weight_decay`` are one number, or numbers by ``default``, means (``lora``,
    ``full``), component (``vision``), both (``vision.lora``) or a rule's ``group``; the most specific one
    applies, a group before all others. A table with ``default`` replaces the preset's table, one without it
    changes only the keys it names.
    """

    learning_rate: RateTable = Field(DEFAULT_LEARNING_RATE, description="Per step, at the peak.")
    weight_decay: RateTable = Field(DEFAULT_WEIGHT_DECAY, description="AdamW's decoupled decay.")
    decay: Literal["matrices", "upstream"] = Field(
        "matrices",
        description="What `weight_decay` acts on. matrices: parameters of two or more dimensions. upstream: all but "
        "biases and the weights of nn.LayerNorm, as the Trainer of upstream's scripts does; that decays RMSNorm's "
        "weights and LoRA's learned scales too.",
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the mean of gradients.")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the mean of squared gradients.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Added to the denominator.")
    lr_scheduler_type: str = Field("cosine", description="Any of transformers' schedules: linear, constant, ...")
    lr_scheduler_kwargs: SchedulerKwargs = Field(
        default_factory=dict,
        description="What that schedule takes besides: `{num_decay_steps: 100}` for warmup_stable_decay, "
        "`{min_lr_rate: 0.1}` for cosine_with_min_lr.",
    )
    warmup_ratio: float = Field(0.02, ge=0, lt=1, description="Share of all steps in which the rate rises from 0.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are scaled down to this norm; 0: never.")

    @model_validator(mode="after")
    def _rates_are_not_negative(self) -> OptimizerSettings:
        for name in RATE_KEYS:
            for key, rate in getattr(self, name).items():
                if rate < 0:
                    raise ValueError(f"{name}.{key} is negative: {rate}")
        return self

    def rate(self, component: str, means: str, group: str | None = None) -> float:
        """Return the learning rate of (component, means), or of the group that a rule puts it in."""
        return _most_specific(self.learning_rate, DEFAULT_LEARNING_RATE, component, means, group)

    def weight_decay_of(self, component: str, means: str, group: str | None = None) -> float:
        """Return the weight decay of (component, means), or of a rule's group, where ``decay`` lets it act."""
        return _most_specific(self.weight_decay, DEFAULT_WEIGHT_DECAY, component, means, group)


def _most_specific(table: Rates, fallback: Rates, component: str, means: str, group: str | None) -> float:
    whole = table if "default" in table else {**fallback, **table}
    return next(whole[key] for key in (group, f"{component}.{means}", component, means, "default") if key in whole)
