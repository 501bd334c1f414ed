"""Memory of one training step in closed form. Every figure is predicted, none measured; 1 GiB = 2^30 bytes.

States of parameters follow the ZeRO paper (arXiv:1910.02054, section 3.1): with mixed precision 2 bytes of
weight, 2 of gradient and 12 of fp32 master weight and AdamW's two moments for each element that learns; each
ZeRO stage divides one more of them by the number of ranks. Without ZeRO what learns is held in fp32: 4 + 4 + 8,
and 2 for the copy that autocast computes with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from vlm_lora_plugin.contract import ComponentSize, ModelSize
from vlm_lora_plugin.vocabulary import COMPONENT_NAMES, ComponentName, Means

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import Recipe

GIB = 2**30
HALF = 2
"""Bytes of an element in bf16 or fp16."""

PLAIN_TRAINABLE = 16
"""Bytes of an element that learns without ZeRO: fp32 weight, gradient and AdamW's two moments."""

MASTER_AND_MOMENTS = 12
LOGIT = 12
"""Bytes of one logit: 16 bit, its fp32 copy, its gradient and their 16-bit copy."""

RESERVE_GIB = 1.75
"""CUDA context, libraries' workspace and fragmentation: an assumption, between the 1.5 and 2 that users report."""

WORTH_OFFLOADING = 1_000_000_000
"""Elements that must learn before moving AdamW's state to the host frees more than 4 GiB of three devices."""

MAX_LIVE_PARAMETERS = 200_000_000
"""Elements that ZeRO-3 keeps gathered at a time."""

REDUCE_BUCKET_ZERO_3 = 16_777_216
PREFETCH_BUCKET = 15_099_494
BUCKET_ZERO_2 = 200_000_000


@dataclass(frozen=True)
class ParameterCounts:
    """What is trained, in elements, and how much runs through it.

    Attributes:
        frozen: Elements that do not learn.
        trainable: Elements that learn, LoRA included.
        largest: Elements of the largest tensor.
        bytes_per_frozen: Of one frozen element.
    """

    frozen: int
    trainable: int
    largest: int
    bytes_per_frozen: int = HALF


@dataclass(frozen=True)
class MemoryEstimate:
    """Predicted GiB of one device, by what they are for.

    Attributes:
        weights: Frozen weights, a shard of them under ZeRO-3.
        training_state: Weights, gradients and AdamW's state of what learns.
        gathered: What ZeRO-3 holds gathered, and the buckets of ZeRO-2 and ZeRO-3.
        activations: What the blocks keep for the backward pass.
        logits: Logits and what the loss makes of them.
        reserve: An assumption: CUDA context, workspace and fragmentation.
        pinned_host: Host memory of one node that offloading pins; not part of the device's.
    """

    weights: float
    training_state: float
    gathered: float
    activations: float
    logits: float
    reserve: float = RESERVE_GIB
    pinned_host: float = 0.0

    @property
    def states(self) -> float:
        """GiB that sizes and dtypes alone decide."""
        return self.weights + self.training_state

    @property
    def total(self) -> float:
        """GiB of the device in all."""
        return self.states + self.gathered + self.activations + self.logits + self.reserve

    def sum(self) -> str:
        """Return the addition in words: ``18.08 weights + 1.88 training state + ... = 23.4 GiB (predicted)``."""
        parts = [
            f"{getattr(self, field.name):.2f} {field.name.replace('_', ' ')}"
            for field in fields(self)
            if field.name != "pinned_host" and getattr(self, field.name)
        ]
        return f"{' + '.join(parts)} = {self.total:.1f} GiB (predicted)"


def means_by_component(recipe: Recipe) -> dict[ComponentName, Means]:
    """Return what a recipe's rules for whole components say; rules by pattern, layer or type are left out."""
    means: dict[ComponentName, Means] = {}
    for rule in recipe.rules:
        if rule.component and not (rule.pattern or rule.layers or rule.module_types or rule.exclude):
            means[rule.component] = rule.means
    return means


def trainable_elements(size: ComponentSize, means: Means, r: int) -> int:
    """Return the elements of a component that learn by a means, with PEFT's rank ``r`` where it adds LoRA."""
    if means == "full":
        return size.parameters - size.fixed
    if means == "lora":
        return size.builtin_lora or size.lora_per_rank * r
    return 0


def published_counts(recipe: Recipe, size: ModelSize) -> ParameterCounts:
    """Return what a recipe trains in a family's published model, by its rules for whole components."""
    means = means_by_component(recipe)
    trainable = sum(trainable_elements(size.components[name], how, recipe.lora.r) for name, how in means.items())
    of_base = sum(trainable_elements(size.components[name], how, 0) for name, how in means.items())
    total = sum(component.parameters for component in size.components.values())
    largest = max(component.largest for component in size.components.values())
    return ParameterCounts(total - of_base, trainable, largest)


def keeps_activations(component: ComponentName, means: Mapping[ComponentName, Means]) -> bool:
    """Return whether gradients flow through a component: it learns, or something that feeds it does."""
    feeding: Mapping[ComponentName, tuple[ComponentName, ...]] = {
        "vision": ("vision",),
        "aligner": ("vision", "aligner"),
    }
    return any(means.get(name, "frozen") != "frozen" for name in feeding.get(component, COMPONENT_NAMES))


@dataclass(frozen=True)
class ForwardPass:
    """What one forward pass of one device works on.

    Attributes:
        rows: Examples in it.
        tokens: Of each row, ``data.max_length``; one of its images is full size.
        checkpointed: Components whose blocks are recomputed.
        answer_only: Whether logits are computed only where a label is.
    """

    rows: int
    tokens: int
    checkpointed: frozenset[ComponentName]
    answer_only: bool


def activations(size: ModelSize, means: Mapping[ComponentName, Means], step: ForwardPass) -> float:
    """Return the GiB that the blocks keep for the backward pass, and the recomputation of the largest one."""
    kept, recomputed = 0, 0
    for name, part in size.components.items():
        if not part.blocks or not keeps_activations(name, means):
            continue
        positions = step.rows * (part.positions_per_image or step.tokens)
        learns = means.get(name, "frozen") != "frozen"
        of_a_block = positions * (part.kept_per_position if learns else part.passed_per_position)
        if name in step.checkpointed:
            kept += part.blocks * positions * part.width * HALF
            recomputed = max(recomputed, of_a_block)
        else:
            kept += part.blocks * of_a_block
    return (kept + recomputed) / GIB


def logits(size: ModelSize, step: ForwardPass) -> float:
    """Return the GiB of the logits; answer-only, those of every position that is not an image."""
    positions = max(step.tokens - size.tokens_per_image, 1) if step.answer_only else step.tokens
    return step.rows * positions * size.vocabulary * LOGIT / GIB


def predict(
    load: ParameterCounts,
    size: ModelSize | None,
    means: Mapping[ComponentName, Means],
    step: ForwardPass | None,
    *,
    stage: int,
    ranks: int,
    nodes: int = 1,
    offload: bool = False,
) -> MemoryEstimate:
    """Predict the memory of one device.

    Args:
        load: What is trained.
        size: The family's sizes; None leaves activations and logits out.
        means: What learns by which means, by component.
        step: What a forward pass works on; None leaves activations and logits out.
        stage: ZeRO stage; 0 is a plain process, or DistributedDataParallel.
        ranks: Processes of the job.
        nodes: Machines they are on.
        offload: ZeRO-3 keeps its shards in pinned host memory.
    """
    weights: float = load.frozen * load.bytes_per_frozen
    if stage == 0:
        state: float = load.trainable * bytes_per_trainable(load.bytes_per_frozen)
        gathered: float = load.trainable * 4 if ranks > 1 else 0  # DistributedDataParallel's buckets
    else:
        gradients = HALF if stage == 1 else HALF / ranks
        state = load.trainable * (HALF + gradients + MASTER_AND_MOMENTS / ranks)
        gathered = 3 * bucket_size(load.trainable) * HALF  # two to reduce, in turn, and one to gather
    pinned = 0.0
    if stage == 3:
        state = load.trainable * (2 * HALF + MASTER_AND_MOMENTS) / ranks
        if offload:
            pinned = (weights + load.trainable * offloaded_bytes(load.trainable)) / nodes
            state -= load.trainable * min(offloaded_bytes(load.trainable), 2 * HALF + MASTER_AND_MOMENTS) / ranks
        weights = 0.0 if offload else weights / ranks
        gathered = HALF * (MAX_LIVE_PARAMETERS + PREFETCH_BUCKET + REDUCE_BUCKET_ZERO_3 + load.largest)
    return MemoryEstimate(
        weights=weights / GIB,
        training_state=state / GIB,
        gathered=gathered / GIB,
        activations=0.0 if size is None or step is None else activations(size, means, step),
        logits=0.0 if size is None or step is None else logits(size, step),
        pinned_host=pinned / GIB,
    )


def bytes_per_trainable(bytes_per_frozen: int) -> int:
    """Return the bytes of each element that learns without ZeRO.

    Args:
        bytes_per_frozen: Of one frozen element. In 16 bit everything runs under autocast, which copies what it
            computes with to 16 bit.
    """
    return PLAIN_TRAINABLE + (HALF if bytes_per_frozen <= HALF else 0)


def offloads_optimizer(trainable: int) -> bool:
    """Return whether offloading moves AdamW's state, too: for LoRA alone it frees next to nothing."""
    return trainable >= WORTH_OFFLOADING


def offloaded_bytes(trainable: int) -> int:
    """Return the bytes of host memory for each element that learns, when ZeRO-3 offloads.

    Its 16-bit weight, and with AdamW's state fp32 master weight, two moments and an fp32 gradient.
    """
    return HALF + MASTER_AND_MOMENTS + 4 if offloads_optimizer(trainable) else HALF


def bucket_size(trainable: int) -> int:
    """Return the elements of a ZeRO-2 bucket: upstream's 2e8, or less where less is reduced at all."""
    return BUCKET_ZERO_2 if trainable >= BUCKET_ZERO_2 else REDUCE_BUCKET_ZERO_3
