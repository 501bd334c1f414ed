"""From the machine to whole settings: checkpointing, batches, precision, answer-only loss and ZeRO, with reasons.

A tier is a function of the recipe's rules, lengths and batches, the family's published sizes and the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.contract import Architecture, Family
from vlm_lora_plugin.planning.memory import (
    ForwardPass,
    MemoryEstimate,
    keeps_activations,
    means_by_component,
    predict,
    published_counts,
)
from vlm_lora_plugin.vocabulary import ComponentName, Hardware

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import Recipe

SMALL_GIB = 32
"""Devices below this hold no whole copy beside other devices, and checkpoint everything."""

LARGE_GIB = 64
"""Devices from here on may take several examples at once."""

MICRO_BATCHES = (4, 2)
ROOM = 0.95
"""Share of a device that may be predicted to be full: predictions err, and a card of "40 GB" has 39.4 GiB."""

ROOMY = 0.8
"""Share of a device that may be predicted to be full when several examples are taken at once."""


@dataclass(frozen=True)
class Choice:
    """One setting of a tier.

    Attributes:
        key: The recipe's key, ``gradient_checkpointing.vision``.
        value: What the tier sets.
        reason: Why.
    """

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Tier:
    """What a machine sets for a recipe.

    Attributes:
        hardware: The machine.
        choices: Every setting.
        stage: ZeRO stage; 0 needs no DeepSpeed.
        memory: Predicted for the family's published model; None where its sizes are unknown.
    """

    hardware: Hardware
    choices: tuple[Choice, ...]
    stage: int
    memory: MemoryEstimate | None

    def value(self, key: str) -> Any:
        """Return what the tier sets for a key."""
        return next(choice.value for choice in self.choices if choice.key == key)

    def reason(self, key: str) -> str:
        """Return why it sets a key so."""
        return next(choice.reason for choice in self.choices if choice.key == key)


def choose_tier(
    recipe: Recipe,
    family: Family,
    architecture: Architecture,
    hardware: Hardware,
    *,
    offload: bool = False,
    stage: tuple[int, str] | None = None,
) -> Tier:
    """Choose the settings that fit a machine.

    Args:
        recipe: The recipe, its preset expanded; only its rules, rank, lengths and batches are read.
        family: Whose model it is.
        architecture: What the model is made of.
        hardware: The machine.
        offload: Whether ZeRO-3 keeps the weights in host memory.
        stage: A ZeRO stage that is decided already, and by whom; None chooses one.
    """
    sizes = _Sizes(recipe, family, architecture, hardware, offload)
    chosen, why = stage if stage is not None else _stage(sizes)
    checkpointed, reasons = _checkpointing(sizes, chosen)
    batch = _batch(sizes, recipe, chosen, checkpointed)
    choices = [
        *(Choice(f"gradient_checkpointing.{name}", name in checkpointed, reasons[name]) for name in sizes.repeating),
        *batch,
        Choice("answer_only_loss", True, "logits of prompt and image positions are never used"),
        Choice("hardware.zero_stage", chosen, why),
        Choice(
            "hardware.bf16",
            hardware.bf16,
            "bf16: the range of fp32, so no loss scaling"
            if hardware.bf16
            else "the device has no bf16: fp16 mixed precision with loss scaling, what learns in fp32",
        ),
    ]
    return Tier(hardware, tuple(choices), chosen, sizes.memory(chosen, checkpointed, batch[0].value))


class _Sizes:
    """What fits, predicted for the family's published model."""

    def __init__(
        self,
        recipe: Recipe,
        family: Family,
        architecture: Architecture,
        hardware: Hardware,
        offload: bool,
    ) -> None:
        self.hardware, self.offload = hardware, offload
        self.size = family.size
        self.means = means_by_component(recipe)
        self.tokens = recipe.data.max_length
        self.load = None if family.size is None else published_counts(recipe, family.size)
        self.repeating = architecture.repeating

    def memory(self, stage: int, checkpointed: frozenset[ComponentName], rows: int = 1) -> MemoryEstimate | None:
        if self.load is None:
            return None
        step = ForwardPass(rows, self.tokens, checkpointed, answer_only=True)
        hardware = self.hardware
        return predict(
            self.load,
            self.size,
            self.means,
            step,
            stage=stage,
            ranks=hardware.ranks,
            nodes=hardware.nodes,
            offload=self.offload and stage == 3,
        )

    def fits(self, stage: int, checkpointed: frozenset[ComponentName], rows: int = 1, share: float = ROOM) -> bool:
        memory = self.memory(stage, checkpointed, rows)
        return memory is not None and memory.total <= share * self.hardware.gpu_memory


def _stage(sizes: _Sizes) -> tuple[int, str]:
    hardware, everything = sizes.hardware, frozenset(sizes.repeating)
    if hardware.ranks == 1:
        return 0, "one device: there is nothing to shard, so no DeepSpeed"
    if sizes.offload:
        return 3, "offload keeps weights in host memory that ZeRO-3 shards"
    if hardware.gpu_memory < SMALL_GIB:
        return 3, f"{hardware.gpu_memory:g} GiB: a whole copy of the weights leaves no room for long rows"
    if sizes.load is None:
        whole = sizes.means.get("language") == "full"
        if hardware.gpu_memory < LARGE_GIB:
            return 3, "the model's sizes are unknown: weights are sharded to be safe"
        return (
            (2, "the language model is trained as a whole: its AdamW state is sharded")
            if whole
            else (
                0,
                "little is trained: plain DistributedDataParallel",
            )
        )
    why = {
        0: "a whole copy and its training state fit: plain DistributedDataParallel",
        2: "the training state does not fit on each device, the weights do: gradients and AdamW state are sharded",
        3: "whole weights do not fit on each device: they are sharded too",
    }
    stage = next((stage for stage in (0, 2) if sizes.fits(stage, everything)), 3)
    return stage, why[stage]


def _checkpointing(sizes: _Sizes, stage: int) -> tuple[frozenset[ComponentName], Mapping[ComponentName, str]]:
    needed = [name for name in sizes.repeating if keeps_activations(name, sizes.means)]
    reasons: dict[ComponentName, str] = {
        name: "nothing in it learns: it keeps no activations" for name in sizes.repeating if name not in needed
    }
    gib = f"{sizes.hardware.gpu_memory:g} GiB"
    if sizes.hardware.gpu_memory < SMALL_GIB or sizes.load is None:
        why = f"{gib}: a must" if sizes.load is not None else "the model's sizes are unknown: recomputed to be safe"
        return frozenset(needed), {**reasons, **dict.fromkeys(needed, why)}
    # The fewest first; of as many, those named first, which keep the most.
    for count in range(len(needed) + 1):
        for some in combinations(needed, count):
            chosen = frozenset(some)
            if sizes.fits(stage, chosen):
                memory = sizes.memory(stage, chosen)
                total = f"{memory.total:.1f} of {gib} (predicted)" if memory is not None else ""
                for name in needed:
                    reasons[name] = (
                        f"without it, it would not fit; with it {total}" if name in chosen else f"it fits: {total}"
                    )
                return chosen, reasons
    return frozenset(needed), {**reasons, **dict.fromkeys(needed, f"needed, and still more than {gib} (predicted)")}


def _batch(
    sizes: _Sizes, recipe: Recipe, stage: int, checkpointed: frozenset[ComponentName]
) -> tuple[Choice, Choice, Choice]:
    training, ranks = recipe.training, sizes.hardware.ranks
    wanted = training.global_batch_size or training.per_device_train_batch_size * training.gradient_accumulation_steps
    share = max(round(wanted / ranks), 1)
    rows = 1
    if sizes.hardware.gpu_memory >= LARGE_GIB:
        rows = next(
            (n for n in MICRO_BATCHES if share % n == 0 and sizes.fits(stage, checkpointed, n, ROOMY)),
            1,
        )
    total = share * ranks
    exact = f"{total} examples in each optimizer step, whatever the machine"
    near = f"{wanted} do not divide by {ranks} devices; {total} is the nearest number that does"
    return (
        Choice(
            "training.per_device_train_batch_size",
            rows,
            "one example at a time takes the least memory" if rows == 1 else "there is room (predicted)",
        ),
        Choice("training.gradient_accumulation_steps", share // rows, f"{ranks} x {rows} x {share // rows} = {total}"),
        Choice("training.global_batch_size", total, near if wanted % ranks else exact),
    )
