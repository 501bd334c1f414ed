"""A recipe on its hardware, worked out: every setting with its reason, the DeepSpeed document, predicted memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.documents import value_at
from vlm_lora_plugin.errors import HardwareError
from vlm_lora_plugin.planning.deepspeed import deepspeed_settings
from vlm_lora_plugin.planning.deepspeed_checks import check_memory, notes
from vlm_lora_plugin.planning.fitting import Fitted
from vlm_lora_plugin.planning.memory import (
    ForwardPass,
    MemoryEstimate,
    ParameterCounts,
    means_by_component,
    predict,
    published_counts,
)
from vlm_lora_plugin.selection.trainables import counted_means
from vlm_lora_plugin.vocabulary import Hardware

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe
    from vlm_lora_plugin.selection.trainables import TrainableSet

ALIKE = 0.1
"""A model this much larger or smaller than the published one, as a share, is another: its activations are unknown."""


@dataclass(frozen=True)
class HardwarePlan:
    """What a recipe does on its hardware.

    Attributes:
        hardware: The machine.
        settings: What the hardware sets, and what the recipe set in its place.
        stage: ZeRO stage; 0 needs no DeepSpeed.
        deepspeed: The DeepSpeed document, or None.
        load: What is trained, in elements; None where nothing is known of the model.
        memory: Predicted for one device; None where nothing is known of the model.
        counted: Whether parameters were counted in the model at hand, rather than the published one's assumed.
        activations_known: Whether the prediction holds activations and logits.
        offload: Whether weights stay in host memory.
        notes: Advice.
    """

    hardware: Hardware
    settings: tuple[Fitted, ...]
    stage: int
    deepspeed: dict[str, Any] | None
    load: ParameterCounts | None
    memory: MemoryEstimate | None
    counted: bool
    activations_known: bool
    offload: bool
    notes: tuple[str, ...]

    def check(self) -> str | None:
        """Refuse what cannot fit; return a warning where it is close.

        Raises:
            HardwareError: The prediction says that it cannot run.
        """
        return None if self.memory is None else check_memory(self.memory, self.hardware, offload=self.offload)

    def problem(self) -> str | None:
        """Return what speaks against it, as words, whether it is refused or close."""
        try:
            return self.check()
        except HardwareError as error:
            return str(error)

    def document(self) -> dict[str, Any]:
        """Return it as plain data, ready for JSON; memory in GiB, predicted."""
        memory = None
        if self.memory is not None:
            memory = {**asdict(self.memory), "total": self.memory.total, "source": "predicted"}
        return {
            "hardware": asdict(self.hardware),
            "settings": [asdict(setting) for setting in self.settings],
            "zero_stage": self.stage,
            "deepspeed": self.deepspeed,
            "memory_gib": memory,
            "problem": self.problem(),
            "notes": list(self.notes),
        }


def plan_hardware(
    recipe: ResolvedRecipe, family: Family, model: nn.Module | None = None, trainables: TrainableSet | None = None
) -> HardwarePlan:
    """Work out a resolved recipe that names its hardware.

    Args:
        recipe: The recipe.
        family: Whose model it is.
        model: The base model, on the meta device for instance; None assumes the family's published one.
        trainables: What the recipe trains in that model; needed with it.

    Raises:
        HardwareError: The recipe names no hardware, or contradicts itself.
    """
    fit = recipe.fit
    if fit is None:
        raise HardwareError("The recipe names no hardware", fix="Write hardware: 3x24, for three devices of 24 GiB.")
    hardware, offload = fit.hardware, recipe.offloads
    size, means = family.size, means_by_component(recipe)
    load = None if size is None else published_counts(recipe, size)
    if model is not None and trainables is not None:
        load, means = parameter_counts(model, trainables), counted_means(trainables)
        if size is not None:
            published = sum(part.parameters for part in size.components.values())
            ours = sum(total for _, total in trainables.totals)
            size = size if abs(ours - published) <= ALIKE * published else None
    step = ForwardPass(
        recipe.training.per_device_train_batch_size,
        recipe.data.max_length,
        frozenset(name for name, wanted in recipe.gradient_checkpointing.items() if wanted),
        recipe.answer_only_loss,
    )
    memory = None
    if load is not None:
        memory = predict(
            load,
            size,
            means,
            step,
            stage=fit.stage,
            ranks=hardware.ranks,
            nodes=hardware.nodes,
            offload=offload and fit.stage == 3,
        )
    document = deepspeed_settings(recipe, family, hardware)
    return HardwarePlan(
        hardware=hardware,
        settings=tuple(_in_effect(setting, recipe) for setting in fit.settings),
        stage=fit.stage,
        deepspeed=document,
        load=load,
        memory=memory,
        counted=model is not None,
        activations_known=size is not None,
        offload=offload,
        notes=tuple(notes(document, load, memory, hardware)),
    )


def _in_effect(setting: Fitted, recipe: ResolvedRecipe) -> Fitted:
    """Return a setting of the hardware's as the model at hand has it: a switch that cannot work there is off."""
    source = recipe.source(setting.key)
    if setting.value is not True or source.kind != "default" or value_at(recipe.document(), setting.key) is not False:
        return setting
    return Fitted(setting.key, False, source.why, by_user=False)


def parameter_counts(model: nn.Module, trainables: TrainableSet) -> ParameterCounts:
    """Count what is trained in a model; only shapes and dtypes are read."""
    learning = {parameter.name for parameter in trainables.of_base()}
    sizes = {name: tensor.numel() for name, tensor in model.named_parameters()}
    frozen = [tensor for name, tensor in model.named_parameters() if name not in learning]
    elements = sum(tensor.numel() for tensor in frozen)
    occupied = sum(tensor.numel() * tensor.element_size() for tensor in frozen)
    return ParameterCounts(
        frozen=elements,
        trainable=sum(parameter.numel for parameter in trainables.parameters),
        largest=max(sizes.values()),
        bytes_per_frozen=round(occupied / elements) if elements else 2,
    )
