"""Which of Swift's model types a folder is, by its content, and what Swift needs to know of it.

Swift looks for a folder's type by its name and by the architecture in its config, and runs the folder's code
to read that config. For folders of our families neither happens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.frameworks.swift.families import family_of_type, own_types
from vlm_lora_plugin.models import read_config
from vlm_lora_plugin.plugins.manager import get_manager

if TYPE_CHECKING:
    from swift.model import ModelInfo

    from vlm_lora_plugin.contract import Family


def family_of(folder: str | Path) -> Family | None:
    """Return the family that recognises a local folder, or None."""
    path = Path(folder)
    if not (path / "config.json").is_file():
        return None
    try:
        return get_manager().family_of_folder(path)
    except ModelError:
        return None


def own_type(folder: str | Path, model_type: str | None = None) -> str | None:
    """Return the Swift model type under which a folder is ours, or None when it is left to Swift.

    A folder that Swift has a working type of its own for (Qwen-VL, which Monkey starts from) is left to Swift
    unless the type was asked for by name.
    """
    if model_type is not None:
        return model_type if model_type in own_types() else None
    family = family_of(folder)
    if family is None or _types_of_swift(Path(folder)):
        return None
    return family.name


def _types_of_swift(folder: Path) -> list[str]:
    from swift.model.model_meta import get_matched_model_types

    architectures = _config(folder).get("architectures")
    if not architectures:
        return []
    return [name for name in get_matched_model_types(architectures) if name not in own_types()]


def _config(folder: Path) -> dict[str, Any]:
    return read_config(folder)


def reading_folders(original: Callable[..., ModelInfo]) -> Callable[..., ModelInfo]:
    """Return what reads a model folder for Swift; our families' without running their code."""

    def _get_model_info(
        model_dir: str, model_type: str | None, quantization_config: Any = None, *args: Any, **kwargs: Any
    ) -> ModelInfo:
        own = own_type(model_dir, model_type)
        if own is None:
            return original(model_dir, model_type, quantization_config, *args, **kwargs)
        if quantization_config is not None:
            raise ModelError(
                f"{model_dir} cannot be loaded quantised: its family's own code loads it",
                fix="Leave --quant_method and --quant_bits out.",
            )
        _register(model_dir, own)
        return _describe(model_dir, own)

    return _get_model_info


def _register(model_dir: str, model_type: str) -> None:
    """Tell Swift what the folder's model is made of, and of its family where that is a fallback."""
    from vlm_lora_plugin.frameworks.swift.model_types import register_family, register_parts

    family = family_of_type(model_type)
    if family.fallback:
        register_family(family)
    register_parts(family, get_manager().architecture_of_folder(family, Path(model_dir)))


def _describe(model_dir: str, model_type: str) -> ModelInfo:
    from swift.model import ModelInfo
    from swift.utils import HfConfigFactory

    config = _config(Path(model_dir))
    return ModelInfo(
        model_type,
        model_dir,
        HfConfigFactory.get_torch_dtype(config, {}),
        HfConfigFactory.get_max_model_len(config),
        None,
        None,
        is_multimodal=True,
    )
