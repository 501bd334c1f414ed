"""Builds a Monkey from a folder: the published layout, or a Qwen-VL to start from."""

from __future__ import annotations

from pathlib import Path

import torch

from vlm_lora_monkey.configuration import MonkeyConfig, VisionSettings, resolve_variant
from vlm_lora_monkey.folder import COMMON, LLM_LORA, monkey_document
from vlm_lora_monkey.modeling import MonkeyForCausalLM
from vlm_lora_plugin.contract import LoadRequest
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import config_of, has_weights, load_model_of, read_config


def load_model(request: LoadRequest) -> MonkeyForCausalLM:
    """Build the model of a folder, in eval mode; with device ``"meta"`` no weight is read.

    Raises:
        ModelError: The config is impossible.
        WeightsError: Tensors are missing, extra or of another shape, or a file is broken.
    """
    config = load_config(request.folder, needs_weights=request.device != "meta", variant=request.variant)
    config.dtype = flagged_dtype(config)
    return load_model_of(MonkeyForCausalLM, config, request)


def load_config(folder: Path, *, needs_weights: bool = True, variant: str | None = None) -> MonkeyConfig:
    """Read a folder's config; where it does not name the variant, the names of the tensors decide.

    Args:
        folder: The model folder.
        needs_weights: Whether a folder without weight files is an error; if not, it is ``variant``.
        variant: One of :data:`~vlm_lora_monkey.folder.VARIANTS`; None stands for the common one.

    Raises:
        ModelError: The config is impossible, or config or tensors say another variant than ``variant``.
        WeightsError: The variant is open and the weight files cannot be read.
    """
    config = config_of(MonkeyConfig, monkey_document(read_config(folder)), folder, {"visual": VisionSettings})
    if needs_weights or has_weights(folder):
        resolve_variant(config, folder)
    if variant is not None:
        wanted = variant == LLM_LORA
        if config.llm_lora not in (None, wanted):
            raise ModelError(
                f"{folder} holds the variant {LLM_LORA if config.llm_lora else COMMON}, not {variant}",
                fix="Leave the variant out: it is known here.",
            )
        config.llm_lora = wanted
    config.name_or_path = str(folder)
    return config


def flagged_dtype(config: MonkeyConfig) -> torch.dtype:
    """Return the dtype that a config names, by the library's key or by upstream's flags."""
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    flags = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return next((dtype for flag, dtype in flags.items() if getattr(config, flag, False)), torch.float32)
