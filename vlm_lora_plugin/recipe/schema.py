"""The recipe's keys, their values and their defaults."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from vlm_lora_plugin.documents import value_at
from vlm_lora_plugin.errors import DocumentError, HardwareError, RecipeError
from vlm_lora_plugin.hardware import check_hardware, parse_hardware
from vlm_lora_plugin.outside.yaml_text import dump_yaml, parse_yaml
from vlm_lora_plugin.recipe.explain import explain
from vlm_lora_plugin.recipe.limits import beyond, problem_of_document, told
from vlm_lora_plugin.vocabulary import COMPONENT_NAMES, MEANS, ComponentName, Hardware, Means


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_list, json_schema_input_type=str | tuple[str, ...])]


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


class _Strict(BaseModel):
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


class Rule(_Strict):
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


class LoraSettings(_Strict):
    """PEFT's LoRA, in PEFT's own words. LoRA that a model carries itself has its own rank and scale."""

    r: int = Field(16, ge=1, description="Rank.")
    lora_alpha: float = Field(32, gt=0, description="Scale is lora_alpha / r (or / sqrt(r) with use_rslora).")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="Dropout in front of the down projection.")
    use_rslora: bool = Field(False, description="Rank-stabilised scale, lora_alpha / sqrt(r).")
    use_dora: bool = Field(False, description="Weight-decomposed LoRA; also trains a magnitude per output.")
    target_modules: dict[ComponentName, Names] = Field(
        default_factory=dict,
        description="Suffixes of the linear layers that get LoRA, by component; `all-linear` for every one. "
        "Components not named here use the family's own list.",
    )


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


class OptimizerSettings(_Strict):
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


class TrainingSettings(_Strict):
    """Batches and length of the run, in the names of transformers' TrainingArguments."""

    per_device_train_batch_size: int = Field(1, ge=1, description="Examples in one forward pass of one device.")
    per_device_eval_batch_size: int = Field(1, ge=1, description="The same, in evaluation.")
    gradient_accumulation_steps: int = Field(16, ge=1, description="Forward passes in one optimizer step.")
    global_batch_size: int | None = Field(
        None,
        ge=1,
        description="Examples in one optimizer step of all devices, for a recipe with `hardware`, which divides them; "
        "null: what one device would take by the two keys above.",
    )
    num_train_epochs: float = Field(1.0, gt=0, description="Times that every example is seen.")
    max_steps: int = Field(-1, ge=-1, description="Optimizer steps; overrides num_train_epochs unless it is -1.")
    logging_steps: int = Field(1, ge=1, description="Log every so many optimizer steps.")
    save_steps: int = Field(500, ge=1, description="Write a checkpoint every so many optimizer steps.")
    save_total_limit: int | None = Field(2, ge=1, description="Checkpoints kept, the newest; null: all.")
    eval_steps: int | None = Field(None, ge=1, description="Evaluate every so many steps; None: at each epoch's end.")
    dataloader_num_workers: int = Field(1, ge=0, description="Processes that read and decode images.")

    @field_validator("max_steps")
    @classmethod
    def _trains_at_all(cls, value: int) -> int:
        if value == 0:
            raise ValueError("0 steps train nothing; -1 leaves the length to num_train_epochs")
        return value


class HardwareSettings(_Strict):
    """The machine; it fills in what the recipe leaves open. ``3x24`` is three devices of 24 GiB.

    See ``docs/reference/deepspeed.md`` for what each machine sets, and why.
    """

    gpus: int = Field(1, ge=1, description="Devices of one node.")
    gpu_memory: float | None = Field(None, gt=0, description="Memory of one device in GiB; needed.")
    host_memory: float | None = Field(None, gt=0, description="Host memory of one node in GiB; null: unknown.")
    bf16: bool = Field(True, description="Whether the device computes in bfloat16; false trains in fp16.")
    nodes: int = Field(1, ge=1, description="Machines of this kind that train together.")
    offload: bool = Field(False, description="With ZeRO-3: keep the sharded weights in pinned host memory. Slow.")
    zero_stage: Literal[0, 1, 2, 3] | None = Field(
        None,
        description="What is sharded over the devices: 0 nothing (no DeepSpeed), 1 the optimizer's state, "
        "2 gradients too, 3 weights too; null: what fits.",
    )

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        machine = _sound(parse_hardware, value)
        return {"gpus": machine.gpus, "gpu_memory": machine.gpu_memory}

    @model_validator(mode="after")
    def _can_exist(self) -> HardwareSettings:
        if self.gpu_memory is not None:
            _sound(check_hardware, self.machine())
        if self.offload and self.zero_stage in (0, 1, 2):
            raise ValueError(
                f"offload keeps weights that ZeRO-3 shards in host memory, zero_stage is {self.zero_stage}"
            )
        return self

    def machine(self) -> Hardware:
        """Return the machine alone.

        Raises:
            HardwareError: It has no ``gpu_memory``, as a part of a recipe may.
        """
        if self.gpu_memory is None:
            raise HardwareError("hardware has no gpu_memory", fix="Write hardware: 3x24, or hardware.gpu_memory: 24.")
        return Hardware(self.gpus, self.gpu_memory, self.host_memory, self.bf16, self.nodes)


def _sound(check: Callable[[Any], Hardware], value: Any) -> Hardware:
    try:
        return check(value)
    except HardwareError as error:
        raise ValueError(f"{error.what}. {error.fix}") from None


class DistributedSettings(_Strict):
    """How several processes work together."""

    timeout: int = Field(
        1800,
        ge=1,
        le=100_000_000,
        description="Seconds that a process waits for the others before it gives up; long before, it says which one is "
        "missing.",
    )


_TURN_KEYS = ("messages", "conversations", "role", "content", "from", "value", "query", "response", "history")


class DataSettings(_Strict):
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


class EvaluationSettings(_Strict):
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


class Recipe(_Strict):
    """What learns, how fast, and on what. Every key has a default; see ``docs/reference/recipe.md``."""

    family: str | None = Field(None, description="The family this recipe is for; None: any that has its parts.")
    preset: str | None = Field(None, description="The family's preset to start from.")
    origin: str | None = Field(None, description="Set when a preset was resolved: family/preset. Information only.")
    components: dict[ComponentName, Means] = Field(
        default_factory=dict, description="Shorthand for rules: component -> frozen | lora | full."
    )
    rules: tuple[Rule, ...] = Field((), description="Ordered; the last match decides. They come after `components`.")
    train_fixed_tables: bool = Field(
        False, description="Also train computed tables (Monkey's attn_pool.pos_embed), as upstream does by accident."
    )
    lora: LoraSettings = Field(default_factory=LoraSettings, description="PEFT's LoRA.")
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings, description="AdamW and its schedule.")
    training: TrainingSettings = Field(default_factory=TrainingSettings, description="Batches and length of the run.")
    gradient_checkpointing: dict[ComponentName, StrictBool] = Field(
        default_factory=dict, description="Recompute this component's blocks in the backward pass; saves memory."
    )
    answer_only_loss: bool = Field(
        False, description="In training, compute logits only where a label is; the same loss in less memory."
    )
    loss_mean: Literal["tokens", "micro_batch"] = Field(
        "tokens",
        description="What the loss of an optimizer step is the mean of. tokens: all supervised tokens of its batches, "
        "on all devices. micro_batch: the means of its micro-batches, as upstream's scripts do, so that a token of a "
        "short answer weighs more.",
    )
    hardware: HardwareSettings | None = Field(
        None,
        description="The machine, in short `3x24`; fills in checkpointing, batches, precision, answer-only loss and "
        "ZeRO where the recipe says nothing.",
    )
    deepspeed: dict[str, Any] = Field(
        default_factory=dict,
        description="DeepSpeed's own keys, laid over those of the hardware; null removes one.",
    )
    distributed: DistributedSettings = Field(
        default_factory=DistributedSettings, description="How several processes work together."
    )
    data: DataSettings = Field(default_factory=DataSettings, description="How examples become tokens.")
    evaluation: EvaluationSettings = Field(
        default_factory=EvaluationSettings, description="What is measured on validation data."
    )
    seed: int = Field(42, ge=0, description="Seed of the LoRA initialisation, the data order and dropout.")

    @classmethod
    def parse(cls, document: Mapping[str, Any], *, source: str = "recipe") -> Self:
        """Validate a mapping.

        Args:
            document: The mapping.
            source: Where it comes from, for messages.

        Raises:
            RecipeError: Names the key, what is wrong with it and the nearest key.
        """
        problem = problem_of_document(dict(document))
        if problem is not None:
            raise RecipeError(f"{source}: {problem}", fix="See docs/reference/recipe.md for every key and its values.")
        try:
            return cls.model_validate(dict(document))
        except ValidationError as error:
            raise RecipeError(
                f"{source}: {explain(error, cls)}",
                fix="See docs/reference/recipe.md for every key and its values.",
            ) from None

    def document(self) -> dict[str, Any]:
        """Return the recipe as plain data, every default written out."""
        return self.model_dump(mode="json")

    def said(self, key: str) -> str:
        """Return a dotted key and its value as one reads them in a message: ``seed is 3``."""
        value = value_at(self.document(), key)
        return f"{key} is {str(value).lower() if isinstance(value, bool) else value}"

    def to_yaml(self) -> str:
        """Return the recipe as YAML that :func:`~vlm_lora_plugin.recipe.read_recipe` reads back to an equal recipe."""
        return dump_yaml(self.document())
