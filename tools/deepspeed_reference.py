"""Writes docs/reference/deepspeed.md from the code: ``python tools/deepspeed_reference.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlm_lora_plugin.contract import Family
from vlm_lora_plugin.errors import HardwareError
from vlm_lora_plugin.planning.deepspeed_reasons import REASONS
from vlm_lora_plugin.planning.memory import RESERVE_GIB
from vlm_lora_plugin.planning.plan import plan_hardware
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager

PAGE = Path(__file__).parents[1] / "docs/reference/deepspeed.md"
MACHINES = ("1x24", "1x32", "1x40", "3x24", "8x80")

INTRODUCTION = f"""\
<!-- Written by tools/deepspeed_reference.py; change the code or that file instead. -->

# Hardware and DeepSpeed

`hardware: 3x24` in a recipe is three devices of 24 GiB. It fills in what the recipe leaves open; what the recipe, its
file or `--set` says itself wins, though not a preset. The resolved recipe holds the result, and `inspect`,
`train --dry-run` and `vlm-lora deepspeed` show each setting with its reason.

```yaml
preset: lora
hardware: {{gpus: 3, gpu_memory: 24, host_memory: 128, bf16: true, offload: false, nodes: 1}}   # or 3x24
```

```console
$ vlm-lora deepspeed --family monkey --gpus 3 --gpu-memory 24 --host-memory 128 > ds.json
```

prints the DeepSpeed document alone, for those who start training in another way:
`TrainingArguments(deepspeed="ds.json")`, or ms-swift's `--deepspeed ds.json`. Both fill in the `auto` values from their
own arguments. In Python it is `deepspeed_settings(recipe, family, hardware)` of
`vlm_lora_plugin.planning.deepspeed`, which returns None where no DeepSpeed is needed. With `--model` in
place of `--family` the parameters are counted in that model.

## How it is decided

- **ZeRO**: one device shards nothing and needs no DeepSpeed. Several devices below 32 GiB shard the weights (ZeRO-3).
  Larger ones shard as little as fits: nothing (DistributedDataParallel), gradients and AdamW's state (ZeRO-2), weights
  too. `hardware.zero_stage` decides otherwise. `hardware.offload` keeps ZeRO-3's shards in pinned host memory.
- **Checkpointing**: everything through which gradients flow on devices below 32 GiB; on larger ones the fewest
  components with which it fits in 95 % of the memory.
- **Batches**: the preset's examples in an optimizer step, on one device, are those of all devices together; where they
  do not divide, the nearest number that does. `training.global_batch_size` sets another; it must divide. Several
  examples go through a device of 64 GiB or more at once where that fits in 80 % of it.
- **Precision**: bf16; with `hardware.bf16: false` (a V100) fp16 mixed precision with loss scaling. What learns is fp32.
- **Answer-only loss**: always; logits of prompt and image positions are never used.
- An adapter's `deepspeed_config` hook is merged over this, then the recipe's `deepspeed` key, in DeepSpeed's own words.

## What is refused

- Text that is not a hardware description; memory in MiB; more processes than devices, or another number than the
  hardware has.
- An `optimizer` or `scheduler` block (it would replace the learning-rate groups); bucket sizes that are not numbers.
- Values that contradict the recipe or the TrainingArguments, each shown beside the other.
- Weights and training state that alone exceed the device (predicted); less is a warning with the addition.
- Offloading that pins more host memory than there is; ZeRO-3 with a quantised base.
- DeepSpeed keys for a machine that runs without DeepSpeed.

## What is predicted

Frozen weights at 2 bytes, what learns at 18 (fp32 weight, gradient, two moments, and autocast's 16-bit copy), under
ZeRO at 2 + 2 + 12 of which each stage divides one more by the number of devices; gathered weights and buckets from the
keys below; activations from what autograd keeps of one block of the published size, counted, times the blocks; logits
at 12 bytes. {RESERVE_GIB:g} GiB are *assumed* for CUDA's context, workspaces and fragmentation. One image a row, of
full size, and rows of `data.max_length` tokens. All of it is arithmetic: nothing here was measured on a GPU, or
calibrated on one.

"""


def page() -> str:
    """Return the page."""
    parts = [INTRODUCTION, _tiers(), _documents(), _keys()]
    return "\n".join(parts)


def _tiers() -> str:
    lines = [
        "## Settings by family, machine and preset",
        "",
        "Batch is devices x examples at once x accumulation. GiB are of one device, predicted; **bold** is more than "
        "95 % of it. *no* is refused: weights and training state alone are more than the device has.",
        "",
        "| family | machine | preset | ZeRO | checkpointing | batch | GiB | fits |",
        "|---|---|---|---|---|---|---:|---|",
    ]
    for family in get_manager().families().values():
        if family.size is not None:
            lines += [_row(family, machine, preset) for machine in MACHINES for preset in family.presets]
    return "\n".join([*lines, ""])


def _row(family: Family, machine: str, preset: str) -> str:
    recipe = resolve_recipe({"preset": preset, "hardware": machine}, family)
    plan = plan_hardware(recipe, family)
    checkpointed = ", ".join(name for name, wanted in recipe.gradient_checkpointing.items() if wanted) or "off"
    training = recipe.training
    batch = f"{plan.hardware.ranks} x {training.per_device_train_batch_size} x {training.gradient_accumulation_steps}"
    try:
        warning = plan.check()
        fits = "close" if warning else "yes"
    except HardwareError:
        warning, fits = "refused", "*no*"
    total = f"{plan.memory.total:.1f}" if plan.memory is not None else "unknown"
    total = f"**{total}**" if warning else total
    stage = plan.stage or "-"
    return f"| {family.title} | {machine} | `{preset}` | {stage} | {checkpointed} | {batch} | {total} | {fits} |"


def _documents() -> str:
    family = get_manager().family("monkey")
    lines = ["## Two documents", ""]
    for machine, preset, said in (
        ({"gpus": 3, "gpu_memory": 24, "offload": True}, "lora", "Three devices of 24 GiB with offload: ZeRO-3"),
        ({"gpus": 8, "gpu_memory": 80}, "lora+llm", "Eight of 80 GiB, the language model trained as a whole: ZeRO-2"),
    ):
        plan = plan_hardware(resolve_recipe({"preset": preset, "hardware": machine}, family), family)
        lines += [f"{said}.", "", "```json", _json(plan.deepspeed), "```", ""]
    return "\n".join(lines)


def _json(document: Any) -> str:
    return json.dumps(document, indent=2)


def _keys() -> str:
    lines = ["## Every key and its reason", "", "| key | reason |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{key}` | {reason} |" for key, reason in REASONS.items()), ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
