"""The whole recipe: its top-level keys and its sections, each in a file of its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, StrictBool, ValidationError
from typing_extensions import Self

from vlm_lora_plugin.documents import value_at
from vlm_lora_plugin.errors import RecipeError
from vlm_lora_plugin.outside.yaml_text import dump_yaml
from vlm_lora_plugin.recipe.data import DataSettings
from vlm_lora_plugin.recipe.evaluation import EvaluationSettings
from vlm_lora_plugin.recipe.explain import explain
from vlm_lora_plugin.recipe.hardware import DistributedSettings, HardwareSettings
from vlm_lora_plugin.recipe.limits import problem_of_document
from vlm_lora_plugin.recipe.lora import LoraSettings
from vlm_lora_plugin.recipe.optimizer import OptimizerSettings
from vlm_lora_plugin.recipe.rules import Rule
from vlm_lora_plugin.recipe.section import Section
from vlm_lora_plugin.recipe.training import TrainingSettings
from vlm_lora_plugin.vocabulary import ComponentName, Means


class Recipe(Section):
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
