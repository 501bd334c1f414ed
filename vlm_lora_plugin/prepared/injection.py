"""LoRA put into a model through PEFT, and drawn by key.

Every LoRA tensor depends on the seed and its canonical name alone; the process's random state is untouched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils.constants import DUMMY_TARGET_MODULES

from vlm_lora_plugin.errors import ModelError, listed
from vlm_lora_plugin.models.keyed_init import draw_builtin, fresh_lora_of, keyed_lora_down
from vlm_lora_plugin.names import ADAPTER_NAME, PEFT_PREFIX, canonical_name
from vlm_lora_plugin.parallel.sharding import gathered, turn_into
from vlm_lora_plugin.parallel.zero3 import zero3_scales_the_loss
from vlm_lora_plugin.prepared.model import VlmLoraPeftModel

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.selection.trainables import TrainableSet


def lora_config(selection: TrainableSet, recipe: Recipe) -> LoraConfig:
    """Return PEFT's config for exactly the selected layers; without any, one that adapts nothing."""
    targets = "|".join(re.escape(layer) for layer in selection.lora_targets)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.lora.r,
        lora_alpha=recipe.lora.lora_alpha,
        lora_dropout=recipe.lora.lora_dropout,
        use_rslora=recipe.lora.use_rslora,
        use_dora=recipe.lora.use_dora,
        target_modules=targets or DUMMY_TARGET_MODULES,
    )


def inject(base: nn.Module, selection: TrainableSet, recipe: Recipe) -> VlmLoraPeftModel:
    """Wrap a base model, put LoRA on the selected layers, and draw all LoRA that starts fresh.

    On the meta device there is nothing to draw.

    Whatever is trained becomes fp32, whatever dtype the base holds, and is drawn in fp32. Under ZeRO-3 in fp16 it
    is then rounded to fp16, and DeepSpeed's optimizer keeps fp32 values. Training or evaluation mode of every layer
    is kept.

    Raises:
        ModelError: The base's own LoRA is not finite (the base is unchanged then), or PEFT adapted other
            layers than those selected.
    """
    _start_builtin(base, selection, recipe.seed)
    with torch.random.fork_rng(devices=[]):  # PEFT draws LoRA on the CPU before it is drawn by key below
        model = VlmLoraPeftModel(base, lora_config(selection, recipe), ADAPTER_NAME)
    layers = {
        name.removeprefix(PEFT_PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    if layers.keys() != set(selection.lora_targets):
        wrong = sorted(layers.keys() ^ set(selection.lora_targets))
        raise ModelError(
            f"PEFT put LoRA on other layers than were selected: {listed(wrong)}",
            fix="Use a PEFT version that this package supports; see its requirements.",
        )
    for wrapper in (model, model.base_model):
        wrapper.training = base.training
    for layer in layers.values():
        layer.train(layer.get_base_layer().training)
    parameters = {canonical_name(name): parameter for name, parameter in model.named_parameters()}
    _draw_peft(layers, parameters, recipe.seed)
    if zero3_scales_the_loss():
        for trained in selection.parameters:
            turn_into(parameters[trained.name], torch.float16)
    return model


def _start_builtin(base: nn.Module, selection: TrainableSet, seed: int) -> None:
    """Turn the base's own trained parameters into fp32 and draw its LoRA that no checkpoint held."""
    parameters = dict(base.named_parameters())
    fresh = fresh_lora_of(base)
    loaded = (p.name for p in selection.parameters if p.kind == "builtin_lora" and p.name not in fresh)
    broken = [name for name in loaded if not _is_finite(parameters[name])]
    if broken:
        raise ModelError(
            f"These LoRA parameters hold values that are not finite: {listed(broken)}",
            why="They were never initialised, or the checkpoint is broken; training would give NaN.",
            fix="Load the model with vlm_lora_plugin.load(folder).",
        )
    for trained in selection.of_base():
        turn_into(parameters[trained.name], torch.float32)
    draw_builtin(parameters, fresh, seed)


@torch.no_grad()
def _draw_peft(layers: Mapping[str, LoraLayer], parameters: Mapping[str, nn.Parameter], seed: int) -> None:
    for name, layer in layers.items():
        down, up = parameters[f"{name}.lora_A.weight"], parameters[f"{name}.lora_B.weight"]
        for parameter in (down, up):
            parameter.data = parameter.data.float()
        if not down.is_meta:
            down.copy_(keyed_lora_down(f"{name}.lora_A.weight", down.shape, seed))
            up.zero_()
        magnitude = parameters.get(f"{name}.lora_magnitude_vector")
        if magnitude is not None:
            # PEFT takes the norm in the base's dtype; in fp32 the first step is the base model's own.
            weight = layer.get_base_layer().weight
            with gathered([weight]):
                magnitude.data = torch.linalg.norm(weight.float(), dim=1)


def _is_finite(parameter: torch.Tensor) -> bool:
    if parameter.is_meta:
        return True
    with gathered([parameter]):
        return bool(parameter.isfinite().all())
