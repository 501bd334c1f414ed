"""Builds a Monkey from a folder: the published layout, or a Qwen-VL to start from."""

from __future__ import annotations

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
    config = load_config(request)
    config.dtype = flagged_dtype(config)
    return load_model_of(MonkeyForCausalLM, config, request)


def load_config(request: LoadRequest) -> MonkeyConfig:
    """Read a folder's config; where it does not name the variant, the names of the tensors decide.

    Only for device ``"meta"`` may weight files be missing: it is then ``request.variant``, None standing for the
    common one.

    Raises:
        ModelError: The config is impossible, or config or tensors say another variant than the request.
        WeightsError: The variant is open and the weight files cannot be read.
    """
    folder, variant = request.folder, request.variant
    config = config_of(MonkeyConfig, monkey_document(read_config(folder)), folder, {"visual": VisionSettings})
    if request.device != "meta" or has_weights(folder):
        resolve_variant(config, folder)
    if variant is not None:
        wanted = variant == LLM_LORA
        if config.llm_lora not in (None, wanted):
            raise ModelError(
                f"{folder} holds the variant {LLM_LORA if config.llm_lora else COMMON}, not {variant}",
                fix="Leave the variant out: it is known here.",
            )
        config.llm_lora = wanted
    return config


def flagged_dtype(config: MonkeyConfig) -> torch.dtype:
    """Return the dtype that a config names, by the library's key or by upstream's flags."""
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    flags = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return next((dtype for flag, dtype in flags.items() if getattr(config, flag, False)), torch.float32)
