"""Small models of every family, and the memory of a real step of theirs as PyTorch's profiler sees it."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from vlm_lora_monkey import tiny as monkey
from vlm_lora_monkey.modeling import MonkeyForCausalLM
from vlm_lora_omnilmm import tiny as omnilmm
from vlm_lora_omnilmm.modeling import OmniLMMForCausalLM
from vlm_lora_plugin.memory.batch import stand_in_batch
from vlm_lora_plugin.memory.step import StepMemory, trace_step
from vlm_lora_plugin.preparation import prepare
from vlm_lora_plugin.prepared.preparation import prepare_outline
from vlm_lora_xcomposer import tiny as xcomposer
from vlm_lora_xcomposer.modeling import XComposerForCausalLM

SMALL: dict[str, tuple[Any, Any, dict[str, Any], tuple[int, int]]] = {
    "monkey": (
        MonkeyForCausalLM,
        monkey.tiny_config,
        {"hidden_size": 256, "kv_channels": 64, "vocab_size": 4000, "visual": {"width": 128, "output_dim": 256}},
        (64, 64),
    ),
    "omnilmm": (OmniLMMForCausalLM, omnilmm.tiny_config, {"hidden_size": 256, "intermediate_size": 512}, (32, 32)),
    "xcomposer2": (
        XComposerForCausalLM,
        partial(xcomposer.tiny_config, "xcomposer2"),
        {"hidden_size": 256, "vision": {"hidden_size": 128}},
        (32, 32),
    ),
    "xcomposer2_4khd": (
        XComposerForCausalLM,
        partial(xcomposer.tiny_config, "xcomposer2_4khd"),
        {"hidden_size": 256, "vision": {"hidden_size": 128}},
        (64, 96),
    ),
    "xcomposer2_5": (
        XComposerForCausalLM,
        partial(xcomposer.tiny_config, "xcomposer2_5"),
        {"hidden_size": 256, "vision": {"hidden_size": 128}},
        (64, 64),
    ),
}
"""Family or variant -> class, config, what is larger than in a tiny model, (height, width) of an image."""


@dataclass(frozen=True)
class Setting:
    """One configuration of a step."""

    model: str
    recipe: dict[str, Any]
    dtype: torch.dtype = torch.float32
    rows: int = 1
    tokens: int = 300
    images: int = 1
    answers: int = 40
    accumulates: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Name it for a test's id."""
        boxes = "".join(name[0] for name, on in self.recipe.get("gradient_checkpointing", {}).items() if on)
        of = f"{self.rows}x{self.tokens}-{self.images}img-{self.answers}ans"
        rest = "-accumulates" if self.accumulates else ""
        return f"{self.model}-{self.recipe['preset']}-{boxes or 'none'}-{str(self.dtype)[6:]}-{of}{rest}"

    def config(self) -> Any:
        """Return a new config of the model."""
        _, make, larger, _ = SMALL[self.model]
        larger = copy.deepcopy(larger)
        if self.model == "monkey":
            larger["visual"]["image_start_id"] = 3990
        return make(**larger)


def one_by_one(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the AdamW whose step the CPU takes one parameter at a time."""
    return torch.optim.AdamW(parameters, foreach=False)


def traced(setting: Setting) -> tuple[StepMemory, dict[str, Any]]:
    """Trace a setting for the CPU; return the step, and the batch with its floats on the meta device."""
    kind, _, _, size = SMALL[setting.model]
    with torch.device("meta"):
        model = kind(setting.config())
    model.to(setting.dtype).eval()
    batch = stand_in_batch(
        model,
        rows=setting.rows,
        tokens=setting.tokens,
        answers=setting.answers,
        image_sizes=[size] * setting.images,
    )
    prepared = prepare_outline(model, setting.recipe)
    step = trace_step(
        prepared,
        batch,
        prepared.vlm_lora.trainable.architecture.components,
        cuda=False,
        accumulates=setting.accumulates,
        optimizer=one_by_one,
    )
    return step, batch


def measured(setting: Setting, batch: dict[str, Any]) -> int:
    """Take two real steps on the CPU and return the peak of the second in bytes, all that is alive included."""
    kind = SMALL[setting.model][0]
    torch.manual_seed(0)
    model = prepare(kind(setting.config()).to(setting.dtype).eval(), setting.recipe).train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = one_by_one(learning)
    given = {name: _with_values(value) for name, value in batch.items()}
    model(**given).loss.backward()
    optimizer.step()
    if not setting.accumulates:
        optimizer.zero_grad(set_to_none=True)
    there = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in _all_alive(model, optimizer, given)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            model(**given).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return sum(there.values()) + peak


def _all_alive(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> Any:
    yield from model.parameters()
    yield from model.buffers()
    yield from (parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))
    for value in batch.values():
        yield from value if isinstance(value, list) else [value]


def _with_values(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_values(one) for one in value]
    return torch.rand(value.shape) if value.is_meta else value
