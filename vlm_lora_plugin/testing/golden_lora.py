"""The LoRA stage of a golden case: an adapter loaded, its loss and gradients, and the merged model.

A case with a ``lora_case`` in its ``expected.json`` brings ``lora_adapter.safetensors`` and
``expected_lora.safetensors``, with names as on the live PEFT model that made them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from vlm_lora_plugin.contract import GoldenCase
from vlm_lora_plugin.errors import listed
from vlm_lora_plugin.names import canonical_name
from vlm_lora_plugin.preparation import prepare
from vlm_lora_plugin.prepared.model import VlmLoraPeftModel
from vlm_lora_plugin.testing.comparison import (
    Finding,
    Tolerance,
    agreement,
    compare_tensors,
    miss,
    worst,
)
from vlm_lora_plugin.testing.golden_comparison import compare_single, compare_stages
from vlm_lora_plugin.testing.golden_passes import Passes

CASE_KEY = "lora_case"
ADAPTER_FILE = "lora_adapter.safetensors"
EXPECTED_FILE = "expected_lora.safetensors"
_GRADIENT_PREFIX = "grad."
_LORA = re.compile(r"\.lora_[AB]\.weight$")


def compare_lora(
    folder: Path, case: GoldenCase, expected: Mapping[str, Any], tolerance: Tolerance
) -> Iterator[Finding]:
    """Prepare the case's model for its adapter, load that, and compare what is stored; changes the model.

    The patches of the forward pass are off, so that every stage exists.
    """
    settings: Mapping[str, Any] = expected[CASE_KEY]
    tensors = load_file(folder / EXPECTED_FILE)
    gradients = {
        canonical_name(name.removeprefix(_GRADIENT_PREFIX)): tensors.pop(name)
        for name in list(tensors)
        if name.startswith(_GRADIENT_PREFIX)
    }
    learning = {canonical_name(name) for name in settings.get("trainable_with_grad", gradients)}
    case.model.zero_grad(set_to_none=True)
    model = prepare(case.model, lora_recipe(settings["config"], learning))
    model.vlm_lora.undo_patches()
    yield _compare_names("lora: what learns", learning, set(model.vlm_lora.trainable.names))
    adapter = {canonical_name(name): tensor for name, tensor in load_file(folder / ADAPTER_FILE).items()}
    problem = _load(model, adapter)
    yield miss("lora: adapter", problem) if problem else agreement("lora: adapter", f"{len(adapter)} tensors")
    if problem:
        return

    base = model.get_base_model()
    passes = Passes(base, model.named_trainables(), case.inputs, case.stages, sorted({*tensors, "logits"}))
    yield from compare_stages(passes, float(settings["loss"]), tensors, tolerance, "lora: ")
    yield from _compare_gradients(passes, gradients, tolerance)
    yield from compare_single(passes, tolerance, prefix="fp32, lora: ")

    single, double = passes.single.stages["logits"], passes.double.stages["logits"]
    spread = partial(passes.stage_spread, "logits")
    passes = Passes(base, {}, case.inputs, case.stages, ["logits"])
    _merge(model)
    yield from compare_stages(passes, float(settings["loss_after_merge"]), {}, tolerance, "lora, merged: ")
    what = "lora, merged: logits against the adapter's"
    yield compare_tensors(what, passes.double.stages["logits"], double, tolerance, spread)
    yield compare_tensors(f"fp32, {what}", passes.single.stages["logits"], single, tolerance, spread)


def lora_recipe(config: Mapping[str, Any], learning: set[str]) -> dict[str, Any]:
    """Return the recipe that puts LoRA on the config's layers and trains the other names in full.

    Args:
        config: PEFT's settings, of which r, lora_alpha, lora_dropout and target_modules count.
        learning: Canonical names of everything that learns.
    """
    full = sorted(name for name in learning if not _LORA.search(name))
    targets = [rf"(.*\.)?{re.escape(target)}" for target in config["target_modules"]]
    rules: list[dict[str, Any]] = [{"pattern": targets, "means": "lora"}]
    if full:
        rules.append({"pattern": [re.escape(name) for name in full], "means": "full"})
    return {"lora": {key: config[key] for key in ("r", "lora_alpha", "lora_dropout")}, "rules": rules}


def _compare_names(what: str, expected: set[str], ours: set[str]) -> Finding:
    parts = {"missing": sorted(expected - ours), "extra": sorted(ours - expected)}
    if any(parts.values()):
        return miss(what, "; ".join(f"{part}: {listed(names)}" for part, names in parts.items() if names))
    return agreement(what, f"{len(expected)} names")


@torch.no_grad()
def _load(model: VlmLoraPeftModel, adapter: Mapping[str, torch.Tensor]) -> str:
    """Copy an adapter's tensors in; return what does not fit, or an empty string."""
    own = {name: parameter for name, parameter in model.named_trainables().items() if _LORA.search(name)}
    problems = {
        "missing": sorted(own.keys() - adapter.keys()),
        "extra": sorted(adapter.keys() - own.keys()),
        "of another shape": [name for name in own if name in adapter and own[name].shape != adapter[name].shape],
    }
    if any(problems.values()):
        return "; ".join(f"{what}: {listed(names)}" for what, names in problems.items() if names)
    for name, parameter in own.items():
        parameter.copy_(adapter[name])
    return ""


def _compare_gradients(passes: Passes, expected: Mapping[str, torch.Tensor], tolerance: Tolerance) -> Iterator[Finding]:
    absent = sorted(expected.keys() - passes.parameters.keys())
    if absent:
        yield miss("lora: gradients", f"of parameters that do not learn: {listed(absent)}")
    findings = []
    for name, parameter in passes.parameters.items():
        if name not in expected:
            findings.append(miss(name, "not recorded"))
            continue
        gradient = passes.double.gradients[name]
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        spread = partial(passes.gradient_spread, name)
        findings.append(compare_tensors(name, gradient, expected[name], tolerance, spread))
    if findings:
        yield worst(findings, f"lora: gradients, elements of {len(findings)}")


def _merge(model: VlmLoraPeftModel) -> None:
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.merge()
