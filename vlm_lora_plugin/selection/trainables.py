"""What a recipe trains in one model, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlm_lora_plugin.contract import Architecture
from vlm_lora_plugin.vocabulary import ComponentName, Kind, Means


@dataclass(frozen=True)
class Trainable:
    """One parameter that learns.

    Attributes:
        name: Canonical name.
        shape: Its shape.
        component: The part of the model it belongs to.
        means: By which means the rule trains it (``lora`` or ``full``).
        kind: A weight of the base, LoRA of the base's own, or PEFT's.
        group: Name of its learning-rate group.
        learning_rate: Peak rate per step.
        weight_decay: AdamW's decoupled decay; 0 where the recipe's ``optimizer.decay`` lets none act: by default for
            vectors and scalars (biases, norms, LoRA scales).
    """

    name: str
    shape: tuple[int, ...]
    component: ComponentName
    means: Means
    kind: Kind
    group: str
    learning_rate: float
    weight_decay: float

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ComponentCount:
    """How much of one component learns.

    Attributes:
        component: The part.
        total: Elements of the base model's parameters in it.
        trainable: Elements that learn, PEFT's LoRA included.
        tensors: Number of parameters that learn.
        means: The means in use, sorted; empty when all of it is frozen.
        learning_rates: The rates in use, ascending.
    """

    component: ComponentName
    total: int
    trainable: int
    tensors: int
    means: tuple[Means, ...]
    learning_rates: tuple[float, ...]


@dataclass(frozen=True)
class TrainableSet:
    """Everything that learns: the source of ``requires_grad``, PEFT's targets, groups and manifest.

    Attributes:
        family: Name of the model's family.
        architecture: What the model is made of.
        parameters: In the order of the base model's parameters; PEFT's stand where their layer's weight does.
        lora_targets: Exact names of the linear layers that get PEFT LoRA, in the same order.
        totals: (component, elements of the base model's parameters in it), in the family's order.
    """

    family: str
    architecture: Architecture
    parameters: tuple[Trainable, ...]
    lora_targets: tuple[str, ...]
    totals: tuple[tuple[ComponentName, int], ...]

    @property
    def names(self) -> frozenset[str]:
        """Canonical names of everything that learns."""
        return frozenset(parameter.name for parameter in self.parameters)

    def of_peft(self) -> tuple[Trainable, ...]:
        """Return the parameters that PEFT's LoRA adds."""
        return tuple(parameter for parameter in self.parameters if parameter.kind == "peft_lora")

    def of_base(self) -> tuple[Trainable, ...]:
        """Return the base model's own parameters that learn, its built-in LoRA included."""
        return tuple(parameter for parameter in self.parameters if parameter.kind != "peft_lora")

    def counts(self) -> tuple[ComponentCount, ...]:
        """Return one line per component, also for those that are frozen."""
        lines = []
        for component, total in self.totals:
            own = [parameter for parameter in self.parameters if parameter.component == component]
            lines.append(
                ComponentCount(
                    component=component,
                    total=total,
                    trainable=sum(parameter.numel for parameter in own),
                    tensors=len(own),
                    means=tuple(sorted({parameter.means for parameter in own})),
                    learning_rates=tuple(sorted({parameter.learning_rate for parameter in own})),
                )
            )
        return tuple(lines)


def counted_means(trainables: TrainableSet) -> dict[ComponentName, Means]:
    """Return the strongest means by which anything of a component learns."""
    means: dict[ComponentName, Means] = {}
    for parameter in trainables.parameters:
        if means.get(parameter.component) != "full":
            means[parameter.component] = parameter.means
    return means
