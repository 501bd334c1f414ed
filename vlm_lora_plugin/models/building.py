"""The beginning of every family's loader: the model of a config, without weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from vlm_lora_plugin.contract import LoadRequest

GENERATION_FILE = "generation_config.json"

Model = TypeVar("Model", bound=PreTrainedModel)


def stored_dtype(config: PreTrainedConfig) -> torch.dtype:
    """Return the dtype that a config names, fp32 where it names none."""
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def build_empty(model_class: type[Model], config: PreTrainedConfig, request: LoadRequest) -> Model:
    """Build a model on the meta device, in eval mode, with the folder's generation settings.

    ``config.dtype`` becomes ``request.dtype``, or stays what the config says. With ``request.device`` ``"meta"``,
    where no weight will be read, the parameters have that dtype already; else they get it with their weights.
    """
    dtype = request.dtype or stored_dtype(config)
    config.dtype = dtype
    with torch.device("meta"):
        model = model_class(config)
    model.eval()  # type: ignore[no-untyped-call]
    if (request.folder / GENERATION_FILE).is_file():
        model.generation_config = GenerationConfig.from_pretrained(request.folder)
        model.generation_config.use_cache = True  # published files switch it off, for training
    if request.device == "meta":
        model.to(dtype)  # type: ignore[arg-type]  # the library wraps it untyped
    return model
