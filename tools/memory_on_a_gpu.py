"""Measure the memory of full-size steps on a CUDA device beside what ``vlm-lora plan`` predicts.

    python tools/memory_on_a_gpu.py --output memory.json

Models of the published sizes get random weights on the device; nothing is downloaded. Each setting takes two
micro-batches of one optimizer step, the second of which is measured: it is the one that is predicted. ``--predict``
alone needs no GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlm_lora_monkey.configuration import MonkeyConfig
from vlm_lora_monkey.modeling import MonkeyForCausalLM
from vlm_lora_omnilmm.configuration import OmniLMMConfig
from vlm_lora_omnilmm.modeling import OmniLMMForCausalLM
from vlm_lora_plugin import prepare
from vlm_lora_plugin.memory.batch import stand_in_batch
from vlm_lora_plugin.memory.step import StepMemory, fused_adamw, trace_step
from vlm_lora_plugin.models import ImageTextModel
from vlm_lora_plugin.prepared.preparation import prepare_outline
from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.modeling import XComposerForCausalLM

GIB = 2**30
MODELS: dict[str, Any] = {
    "monkey": lambda: MonkeyForCausalLM(MonkeyConfig()),
    "4khd": lambda: XComposerForCausalLM(XComposerConfig(variant="xcomposer2_4khd")),
    "omnilmm": lambda: OmniLMMForCausalLM(
        OmniLMMConfig(im_patch_token=32000, im_start_token=32001, im_end_token=32002)
    ),
}


@dataclass(frozen=True)
class Setting:
    """One step of one model."""

    model: str
    preset: str
    tokens: int
    answers: int
    crops: int = 0
    checkpointed: bool = True
    rows: int = 1

    def recipe(self) -> dict[str, Any]:
        """Return the recipe; switches that would have no effect are left out."""
        vision = self.model == "monkey"
        boxes = {"language": self.checkpointed, **({"vision": self.checkpointed} if vision else {})}
        return {"preset": self.preset, "answer_only_loss": True, "gradient_checkpointing": boxes}


SETTINGS = (
    Setting("4khd", "lora", 3200, 200, 16),
    Setting("4khd", "lora", 2700, 100, 16, checkpointed=False),
    Setting("4khd", "lora", 4500, 200, 25),
    Setting("4khd", "lora-low-memory", 9000, 300, 55),
    Setting("4khd", "lora", 3200, 200, 16, rows=4),
    Setting("monkey", "lora", 1600, 200),
    Setting("monkey", "lora", 2048, 750),
    Setting("monkey", "lora", 1600, 200, checkpointed=False),
    Setting("omnilmm", "lora", 2048, 200),
    Setting("omnilmm", "lora", 2048, 200, checkpointed=False),
)


def batch_of(setting: Setting, model: ImageTextModel) -> dict[str, Any]:
    """Return the setting's batch, pixels on the meta device."""
    size = model.largest_image_size({"hd_num": setting.crops} if setting.crops else {})
    return stand_in_batch(model, rows=setting.rows, tokens=setting.tokens, answers=setting.answers, image_sizes=[size])


def predicted(setting: Setting) -> StepMemory:
    """Trace the setting's step."""
    with torch.device("meta"):
        model = MODELS[setting.model]()
    model.to(torch.bfloat16).eval()
    batch = batch_of(setting, model)
    prepared = prepare_outline(model, setting.recipe())
    return trace_step(prepared, batch, prepared.vlm_lora.trainable.architecture.components)


def measured(setting: Setting) -> tuple[float, float, float]:
    """Take the step on the device; return GiB allocated and reserved at the peak, and seconds of the second pass."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = MODELS[setting.model]()
    model.to(torch.bfloat16).eval().to_empty(device="cuda")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02)
    model.fill_buffers("cuda")
    batch = {name: _on_device(value) for name, value in batch_of(setting, model).items()}
    prepared = prepare(model, setting.recipe()).train()
    optimizer = fused_adamw([parameter for parameter in prepared.parameters() if parameter.requires_grad])
    prepared(**batch).loss.backward()
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    prepared(**batch).loss.backward()
    optimizer.step()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    return torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB, seconds


def _on_device(value: Any) -> Any:
    if isinstance(value, list):
        return [_on_device(one) for one in value]
    return torch.rand(value.shape, device="cuda") if value.is_meta else value.to("cuda")


def rows(predict_only: bool) -> Iterator[dict[str, Any]]:
    """Yield one line of the table for each setting."""
    for setting in SETTINGS:
        step = predicted(setting)
        line: dict[str, Any] = {
            **vars(setting),
            "predicted_gib": step.peak.bytes / GIB,
            "static_gib": step.static / GIB,
        }
        del step
        if not predict_only:
            allocated, reserved, seconds = measured(setting)
            line |= {"allocated_gib": allocated, "reserved_gib": reserved, "seconds": seconds}
            line["error"] = line["predicted_gib"] / allocated - 1
            gc.collect()
            torch.cuda.empty_cache()
        print(json.dumps(line), flush=True)  # noqa: T201  a script's output
        yield line


def main() -> None:
    """Run every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="Write the lines here, as JSON.")
    parser.add_argument("--predict", action="store_true", help="Predict alone.")
    options = parser.parse_args()
    if not options.predict and not torch.cuda.is_available():
        sys.exit("There is no CUDA device; --predict alone needs none.")
    found = list(rows(options.predict))
    if options.output is not None:
        where = "none" if options.predict else torch.cuda.get_device_name()
        document = {"device": where, "torch": torch.__version__, "settings": found}
        options.output.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
