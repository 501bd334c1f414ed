"""What cannot be right: contradictions, too little memory, bases that cannot be sharded. Each with its arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.documents import leaves, value_at
from vlm_lora_plugin.errors import HardwareError
from vlm_lora_plugin.planning.memory import MemoryEstimate, ParameterCounts, offloads_optimizer
from vlm_lora_plugin.planning.tiers import ROOM

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from vlm_lora_plugin.planning.resolved import ResolvedRecipe
    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.vocabulary import Hardware

AUTO = "auto"
Expected = tuple[str, str, Any]
"""A DeepSpeed key, dotted; who says otherwise, and by which name; the value there."""


def check_recipe(document: Mapping[str, Any], recipe: ResolvedRecipe, hardware: Hardware) -> None:
    """Refuse a DeepSpeed document that contradicts the recipe.

    Raises:
        HardwareError: Shows each value beside the recipe's.
    """
    training = recipe.training
    rows, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    expected: list[Expected] = [
        ("train_micro_batch_size_per_gpu", "training.per_device_train_batch_size", rows),
        ("gradient_accumulation_steps", "training.gradient_accumulation_steps", steps),
        ("train_batch_size", f"{hardware.ranks} devices x {rows} x {steps}", hardware.ranks * rows * steps),
        ("gradient_clipping", "optimizer.max_grad_norm", recipe.optimizer.max_grad_norm),
    ]
    if not hardware.bf16:
        expected.append(("bf16.enabled", "hardware.bf16", False))

    def said_by(key: str) -> str:
        own = f"deepspeed.{key}"
        if own in recipe.sources:
            return f" ({recipe.source(own)})"
        if key in dict(leaves(recipe.document())):
            return f" ({recipe.source(key)})"
        return ""

    _refuse(document, expected, "the recipe", said_by)


def check_arguments(document: Mapping[str, Any], arguments: TrainingArguments) -> None:
    """Refuse a DeepSpeed document that contradicts the TrainingArguments, before any weight is loaded.

    transformers compares them, too, but not before the first step, and not precision given as a switch.

    Raises:
        HardwareError: Shows each value beside the argument's.
    """
    rows, steps = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    expected: list[Expected] = [
        ("train_micro_batch_size_per_gpu", "per_device_train_batch_size", rows),
        ("gradient_accumulation_steps", "gradient_accumulation_steps", steps),
        (
            "train_batch_size",
            f"{arguments.world_size} processes x {rows} x {steps}",
            arguments.world_size * rows * steps,
        ),
        ("gradient_clipping", "max_grad_norm", arguments.max_grad_norm),
        ("bf16.enabled", "bf16", arguments.bf16),
        ("fp16.enabled", "fp16", arguments.fp16),
    ]
    _refuse(document, expected, "TrainingArguments")


def _refuse(
    document: Mapping[str, Any],
    expected: Iterable[Expected],
    whose: str,
    said_by: Callable[[str], str] = lambda key: "",
) -> None:
    problems = []
    for key, name, value in expected:
        given = value_at(document, key)
        if given not in (None, AUTO, value):
            problems.append(f"deepspeed {key} is {given}{said_by(key)}, {name} is {value}{said_by(name)}")
    if problems:
        raise HardwareError(
            f"The DeepSpeed settings contradict {whose}: {'; '.join(problems)}",
            why="Only one of two values can be trained with.",
            fix='Leave the key out of the DeepSpeed settings, or write "auto" there.',
        )


def check_unused(recipe: Recipe, hardware: Hardware) -> None:
    """Refuse DeepSpeed keys in a recipe that runs without DeepSpeed.

    Raises:
        HardwareError: There are some.
    """
    keys = [key for key in recipe.deepspeed if key != "zero_optimization" or set(recipe.deepspeed[key]) - {"stage"}]
    if keys:
        raise HardwareError(
            f"The recipe has DeepSpeed keys ({', '.join(keys)}), but {hardware} is trained without DeepSpeed",
            why="They would have no effect.",
            fix="Leave `deepspeed` out, or set hardware.zero_stage to 1, 2 or 3.",
        )


def check_base(config: Mapping[str, Any], stage: int, load: ParameterCounts | None, hardware: Hardware) -> None:
    """Refuse to shard a quantised base.

    Args:
        config: The content of the model's ``config.json``.
        stage: ZeRO stage.
        load: What is trained, for the arithmetic; None leaves it out.
        hardware: The machine.

    Raises:
        HardwareError: ZeRO-3 is to shard a base with a ``quantization_config``.
    """
    quantised = config.get("quantization_config")
    if stage != 3 or not quantised:
        return
    method = quantised.get("quant_method", "unknown method") if isinstance(quantised, Mapping) else "unknown method"
    sizes = ""
    if load is not None:
        whole = (load.frozen + load.trainable) * 2 / 2**30
        sizes = (
            f" In 16 bit a device holds {whole:.2f} / {hardware.ranks} = {whole / hardware.ranks:.2f} GiB of weights; "
            f"in 4 bit, whole, about {whole / 4:.2f} GiB."
        )
    raise HardwareError(
        f"ZeRO-3 cannot shard a quantised base ({method})",
        why=f"It splits tensors of 16 and 32 bit; packed weights would be cut in their middle.{sizes}",
        fix="Give the model in 16 bit. The families' own loading reads no packed weights without ZeRO, either.",
    )


def check_memory(memory: MemoryEstimate, hardware: Hardware, *, offload: bool = False) -> str | None:
    """Refuse what cannot fit, and return a warning where it is close.

    Returns:
        The warning with its arithmetic; None when there is room.

    Raises:
        HardwareError: Weights and training state alone are more than the device has, or offloading pins more than
            the host has.
    """
    if offload and hardware.host_memory is not None and memory.pinned_host > hardware.host_memory:
        raise HardwareError(
            f"Offloading pins {memory.pinned_host:.1f} GiB of host memory on each node (predicted), "
            f"which has {hardware.host_memory:g} GiB",
            why="Pinned memory cannot be swapped: the operating system would stop processes.",
            fix="Leave offload out, or use more nodes or a host with more memory.",
        )
    if memory.states > hardware.gpu_memory:
        raise HardwareError(
            f"{memory.weights:.2f} weights + {memory.training_state:.2f} training state = {memory.states:.1f} GiB "
            f"(predicted) on a device of {hardware.gpu_memory:g} GiB",
            why="That is before activations, logits and workspace.",
            fix="Train less (another preset), shard over more devices, or add hardware.offload: true to ZeRO-3.",
        )
    if memory.total > ROOM * hardware.gpu_memory:
        tight = "more than" if memory.total > hardware.gpu_memory else "close to"
        return f"{memory.sum()}: {tight} the {hardware.gpu_memory:g} GiB of a device. It may run out of memory."
    return None


def notes(
    document: Mapping[str, Any] | None, load: ParameterCounts | None, memory: MemoryEstimate | None, hardware: Hardware
) -> list[str]:
    """Return advice on a DeepSpeed document: what is allowed, but of little use or not checked."""
    zero: Mapping[str, Any] = (document or {}).get("zero_optimization") or {}
    lines = []
    if (zero.get("offload_optimizer") or {}).get("device") in ("cpu", "nvme") and load is not None:
        state = load.trainable * 12 / hardware.ranks / 2**30
        if not offloads_optimizer(load.trainable):
            lines.append(
                f"offload_optimizer frees {state:.2f} GiB of a device (predicted): only {load.trainable / 1e6:.0f} "
                "million elements learn. Advised against: it costs time in every step, and a compiler at the start."
            )
    if (zero.get("offload_param") or {}).get("device") == "cpu" and hardware.host_memory is None and memory is not None:
        lines.append(
            f"Offloading pins {memory.pinned_host:.1f} GiB of host memory on each node (predicted); "
            "give host_memory to have it checked."
        )
    return lines
