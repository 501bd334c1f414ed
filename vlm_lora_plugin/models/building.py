"""Every family's loader: the model of a config, without weights, with those of a folder, or with random ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from vlm_lora_plugin.contract import LoadRequest
from vlm_lora_plugin.errors import ModelError, VlmLoraError
from vlm_lora_plugin.models.config_folder import CONFIG, MOST_BYTES, read_config
from vlm_lora_plugin.models.keyed_init import draw_builtin
from vlm_lora_plugin.models.quantised import refuse_quantised
from vlm_lora_plugin.models.weights import load_weights
from vlm_lora_plugin.outside.files import reason
from vlm_lora_plugin.outside.json_text import read_json
from vlm_lora_plugin.plugins.isolation import told

if TYPE_CHECKING:
    from vlm_lora_plugin.models.image_text import ImageTextModel

GENERATION_FILE = "generation_config.json"

WIDE_RANGE = 0.15
"""The ``initializer_range`` of a model that a demo trains. With the usual 0.02 the frozen head's logits stay so close
together that no input could make one answer likely."""

Model = TypeVar("Model", bound=PreTrainedModel)
Seeing = TypeVar("Seeing", bound="ImageTextModel")


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
    try:
        with torch.device("meta"):
            model = model_class(config)
    except VlmLoraError:
        raise
    except Exception as error:  # layers check their sizes themselves, each in its own words
        raise ModelError(
            f"{request.folder / CONFIG}: no {model_class.__name__} can be built from it: {told(error)}",
            fix="Use the config.json that belongs to these weights.",
        ) from error
    model.eval()  # type: ignore[no-untyped-call]
    if (request.folder / GENERATION_FILE).is_file():
        model.generation_config = _generation_config(request.folder)
        model.generation_config.use_cache = True  # published files switch it off, for training
    if request.device == "meta":
        model.to(dtype)  # type: ignore[arg-type]  # the library wraps it untyped
    return model


def _generation_config(folder: Path) -> GenerationConfig:
    file = folder / GENERATION_FILE
    try:
        document = read_json(file, MOST_BYTES)
        if not isinstance(document, dict):
            raise ValueError("it holds no JSON object")
        return GenerationConfig.from_dict(document)
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be used: {reason(error)}", fix="Download it again.") from None
    except Exception as error:  # the library's own checks raise many types
        raise ModelError(f"{file} cannot be used: {told(error).splitlines()[0]}", fix="Download it again.") from None


def load_model_of(model_class: type[Seeing], config: PreTrainedConfig, request: LoadRequest) -> Seeing:
    """Build a model and fill it from ``request.folder``, in eval mode; with device ``"meta"`` no weight is read.

    Built-in LoRA that the checkpoint lacks as a whole is drawn from ``request.seed`` and named in the model's
    ``fresh_lora_names``. Where ZeRO-3 is on, the parameters are sharded as they are read.

    Raises:
        ModelError: The folder's weights are quantised.
        WeightsError: Tensors are missing, extra or of another shape, or a file is broken.
    """
    refuse_quantised(request.folder, read_config(request.folder))
    model = build_empty(model_class, config, request)
    model.after_loading()
    if request.device == "meta":
        return model
    model.fill_buffers(request.device)
    fresh = load_weights(
        model,
        request.folder,
        dtype=stored_dtype(config),
        device=request.device,
        ignore=model.ignored_tensors,
        optional=model.builtin_lora,
    )
    draw_builtin(dict(model.named_parameters()), fresh, request.seed)
    model.fresh_lora_names = fresh
    return model


def random_model(model_class: type[Model], config: PreTrainedConfig, seed: int) -> Model:
    """Return a model with random weights that depend on ``seed`` alone, in eval mode, fp32 on the CPU."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = model_class(config)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def folder_writer(
    build: Callable[..., PreTrainedModel], write_tokenizer: Callable[[Path], object]
) -> Callable[..., Path]:
    """Return what writes a loadable folder of a model that ``build`` makes: config, safetensors, tokenizer files.

    The function returned takes the folder, which it makes when missing, and then ``build``'s own arguments; it
    returns the folder.
    """

    def write(folder: str | Path, *args: Any, **kwargs: Any) -> Path:
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        build(*args, **kwargs).save_pretrained(path)
        write_tokenizer(path)
        return path

    return write
