"""What a recipe trains in a model, in numbers, for people and for programs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.contract import Family
from vlm_lora_plugin.parallel.sharding import full_numel
from vlm_lora_plugin.planning.memory import GIB, bytes_per_trainable
from vlm_lora_plugin.planning.plan import parameter_counts
from vlm_lora_plugin.vocabulary import ComponentName, Kind, Means

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.selection.trainables import Trainable, TrainableSet


@dataclass(frozen=True)
class GroupSummary:
    """Parameters of one component that learn alike.

    Attributes:
        group: Learning-rate group.
        means: ``lora`` or ``full``.
        kind: A weight of the base, LoRA of its own, or PEFT's.
        tensors: How many parameters.
        elements: Their elements.
        learning_rate: At the peak.
        weight_decay: Of those that have any; see the recipe's ``optimizer.decay``.
        undecayed: Tensors among them without decay.
    """

    group: str
    means: Means
    kind: Kind
    tensors: int
    elements: int
    learning_rate: float
    weight_decay: float
    undecayed: int


@dataclass(frozen=True)
class ComponentSummary:
    """One part of the model: elements in all, elements that learn, and whether its blocks are recomputed."""

    component: ComponentName
    parameters: int
    trainable: int
    gradient_checkpointing: bool
    groups: tuple[GroupSummary, ...]


@dataclass(frozen=True)
class MemoryPrediction:
    """GiB predicted from sizes and dtypes alone; activations, logits and workspace come on top.

    Attributes:
        frozen_weights: Weights that do not learn, in the load dtype, and buffers.
        training_state: fp32 weights, gradients and AdamW moments of what learns, without ZeRO; of a model in 16 bit
            also the copy that autocast computes with.
    """

    frozen_weights: float
    training_state: float
    source: str = "predicted"


@dataclass(frozen=True)
class ModelSummary:
    """Everything that ``vlm-lora inspect`` shows."""

    model: str
    family: str
    recipe: str
    dtype: str
    components: tuple[ComponentSummary, ...]
    parameters: int
    trainable: int
    memory_gib: MemoryPrediction
    rules: tuple[dict[str, Any], ...]

    def document(self) -> dict[str, Any]:
        """Return it as plain data, ready for JSON."""
        return asdict(self)


def summarise(model: nn.Module, name: str, family: Family, recipe: Recipe, trainables: TrainableSet) -> ModelSummary:
    """Count what learns and predict its memory.

    Args:
        model: The base model before injection, on any device; only shapes and dtypes are read.
        name: What to call it, its folder usually.
        family: The family that owns it.
        recipe: The resolved recipe.
        trainables: What the recipe trains in it.
    """
    by_component: defaultdict[ComponentName, list[Trainable]] = defaultdict(list)
    for parameter in trainables.parameters:
        by_component[parameter.component].append(parameter)
    components = tuple(
        ComponentSummary(
            component=component,
            parameters=elements,
            trainable=sum(parameter.numel for parameter in by_component[component]),
            gradient_checkpointing=recipe.gradient_checkpointing.get(component, False),
            groups=_groups(by_component[component]),
        )
        for component, elements in trainables.totals
    )
    base = dict(model.named_parameters())
    learning = {parameter.name for parameter in trainables.of_base()}
    frozen = [tensor for key, tensor in base.items() if key not in learning]
    frozen_bytes = sum(full_numel(tensor) * tensor.element_size() for tensor in (*frozen, *model.buffers()))
    trainable = sum(component.trainable for component in components)
    per_trainable = bytes_per_trainable(parameter_counts(model, trainables).bytes_per_frozen)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in base.values()})
    return ModelSummary(
        model=name,
        family=family.title,
        recipe=recipe.origin or "own rules",
        dtype=", ".join(dtypes),
        components=components,
        parameters=sum(component.parameters for component in components),
        trainable=trainable,
        memory_gib=MemoryPrediction(frozen_bytes / GIB, trainable * per_trainable / GIB),
        rules=tuple(rule.model_dump(mode="json", exclude_defaults=True) for rule in recipe.rules),
    )


def _groups(parameters: list[Trainable]) -> tuple[GroupSummary, ...]:
    alike: defaultdict[tuple[str, Means, Kind, float], list[Trainable]] = defaultdict(list)
    for parameter in parameters:
        alike[parameter.group, parameter.means, parameter.kind, parameter.learning_rate].append(parameter)
    return tuple(
        GroupSummary(
            group=group,
            means=means,
            kind=kind,
            tensors=len(members),
            elements=sum(member.numel for member in members),
            learning_rate=rate,
            weight_decay=max(member.weight_decay for member in members),
            undecayed=sum(member.weight_decay == 0 for member in members),
        )
        for (group, means, kind, rate), members in sorted(alike.items())
    )
