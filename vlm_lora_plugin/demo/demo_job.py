"""The demo's steps: a tiny random base, real images, the usual job, and the adapter read back elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from vlm_lora_plugin.answering.evaluation import exact_match, generate_answers
from vlm_lora_plugin.contract import Family
from vlm_lora_plugin.data.files import read_examples
from vlm_lora_plugin.demo.digits import write_digits
from vlm_lora_plugin.errors import AdapterError, TrainingError
from vlm_lora_plugin.job.train import run as run_job
from vlm_lora_plugin.job.train_job import TrainJob
from vlm_lora_plugin.loading import load
from vlm_lora_plugin.parallel.children import environment, module_line
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.reporting.console import make_console

ANSWER_TOKENS = 3
BATCH = 50

# A model this small takes a higher rate and needs no checkpointing; the trainable set is the preset's own.
OVERRIDES: dict[str, Any] = {
    "optimizer": {"learning_rate": 6e-3, "warmup_ratio": 0.05},
    "training": {
        "per_device_train_batch_size": 48,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 10,
        "logging_steps": 5,
        "dataloader_num_workers": 1,
    },
}


def run(output: Path, *, family_name: str | None = None) -> float:
    """Train a tiny model on handwritten digits and print the held-out accuracy before, after and reloaded.

    Args:
        output: Folder for base, data and results; those of an earlier demo are replaced.
        family_name: Whose tiny model to train; None for the first family that brings one.

    Returns:
        The tuned model's share of exact answers on the held-out images.

    Raises:
        AdapterError: The family is unknown or brings no demo; the ones that do are named.
        TrainingError: The adapter, reloaded in a fresh process, answers differently.
    """
    torch.set_num_threads(1)  # a second thread gains nothing on matrices this small, and waits where cores are shared
    started = time.monotonic()
    console = make_console()
    family, write_base = _demo_of(family_name)
    base, data = output / "base", output / "data"
    for folder in (base, data):
        shutil.rmtree(folder, ignore_errors=True)
    own = write_base(base) or {}
    train, held_out = write_digits(data)
    examples = read_examples(held_out, family)

    model, processor = load(base)
    before = exact_match(
        generate_answers(model, processor, examples, max_new_tokens=ANSWER_TOKENS, batch_size=BATCH), examples
    )
    whole = dict.fromkeys(get_manager().architecture(family, model).repeating, False)
    overrides = {key: {**OVERRIDES.get(key, {}), **own.get(key, {})} for key in {**OVERRIDES, **own}}
    overrides["gradient_checkpointing"] = whole
    job = TrainJob(model=base, data=train, output=output, overrides=overrides, dtype="fp32", overwrite=True)
    result = run_job(job, console)
    if result.model is None:
        raise TrainingError("The demo trains in this process")
    answers = generate_answers(result.model, processor, examples, max_new_tokens=ANSWER_TOKENS, batch_size=BATCH)
    after = exact_match(answers, examples)

    printed = subprocess.run(
        [*module_line("vlm_lora_plugin.demo.reload"), str(base), str(result.adapter), str(held_out)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment(),
    ).stdout
    reloaded: list[str] = json.loads(printed)
    if reloaded != answers:
        changed = sum(one != other for one, other in zip(answers, reloaded, strict=True))
        raise TrainingError(f"The reloaded adapter answers {changed} of {len(answers)} questions differently")
    console.print(f"results in {output}, {time.monotonic() - started:.0f} s in all", highlight=False)
    console.print(
        f"held-out exact match: base {before:.2f} -> tuned {after:.2f} "
        f"(reloaded {exact_match(reloaded, examples):.2f})",
        highlight=False,
    )
    return after


def _demo_of(name: str | None) -> tuple[Family, Callable[[Path], Mapping[str, Any] | None]]:
    families = get_manager().families()
    demos = {family.name: family for family in families.values() if family.test_support.write_tiny_model is not None}
    if name is None:
        name = next(iter(demos), None)
    family = None if name is None else demos.get(name)
    write = None if family is None else family.test_support.write_tiny_model
    if family is None or write is None:
        raise AdapterError(
            "No installed family brings a demo" if name is None else f"There is no demo of '{name}'",
            fix=f"Families with a demo: {', '.join(demos)}." if demos else "",
        )
    return family, get_manager().function(family, write)
