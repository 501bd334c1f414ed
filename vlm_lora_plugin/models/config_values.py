"""A model folder's config, checked key by key before anything is built from it.

A config may be damaged, or a stranger's: a size of ten to the twelfth would build layers until memory is full, and a
word in a number's place ends in some library's traceback. What is wrong is said of the key and the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedConfig

from vlm_lora_plugin.errors import ModelError, VlmLoraError
from vlm_lora_plugin.models.config_folder import CONFIG
from vlm_lora_plugin.outside.display import shown
from vlm_lora_plugin.plugins.answers import annotations_of, problem_of
from vlm_lora_plugin.plugins.isolation import told

Config = TypeVar("Config", bound=PreTrainedConfig)

_BOUNDS: tuple[tuple[str, float, float], ...] = (
    (r".*(^|_)(id|token)", 0, 2**31 - 1),
    (r"(.*_)?(layers|depth|repeat_num)", 1, 1024),
    (r"(.*_)?(image_size|img_size|window_size|patch_size|n_queries|num_query|hd_num)", 1, 2**14),
    (r"max_position_embeddings|seq_length|sliding_window", 1, 2**24),
    (r".*dropout.*", 0, 0.999),
    (r".*(eps|epsilon)", 1e-30, 1),
    (r"initializer_range", 0, 10),
    (r".*(theta|base)", 1e-3, 1e12),
    (r".*(ratio|pct|factor|alpha)", 1e-6, 1e6),
)
"""Least and most of a number by its key; the first that matches counts."""

_SIZE = (1, 2**20)
"""Of any other whole number: no published model has a side or vocabulary beyond."""

_ROPE = ("rope_scaling", "rope_parameters")
_OF_ROPE = {"factor": float, "type": str, "rope_type": str, "rope_theta": float}
_ROPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_COMMON: Mapping[str, Any] = {
    **{"dtype": str | None, "torch_dtype": str | None},
    **dict.fromkeys(_ROPE, dict[str, Any] | None),
}

_FIX = "Use the config.json that belongs to these weights."


def config_of(
    kind: type[Config],
    document: Mapping[str, Any],
    folder: Path,
    parts: Mapping[str, Any] | None = None,
) -> Config:
    """Return the config that a folder's ``config.json`` describes; it remembers the folder as ``name_or_path``.

    Args:
        kind: The config's class; the annotations of its fields say what each key may hold.
        document: The content, without what names code or classes.
        folder: The model folder, for messages.
        parts: Key -> the annotated class, or the annotations by key, of a mapping inside the config.

    Raises:
        ModelError: Names the file, the key and what is wrong with it.
    """
    check_values(kind, document, folder, parts)
    try:
        config = kind(**document)
    except VlmLoraError as error:
        raise ModelError(f"{folder / CONFIG}: {error.what}", why=error.why, fix=error.fix or _FIX) from None
    except Exception as error:  # the library's own checks raise many types
        key = _culprit(kind, document)
        what = f"`{key}` is {shown(repr(document[key]))}" if key else f"no {kind.__name__} can be made of it"
        raise ModelError(f"{folder / CONFIG}: {what}: {told(error).splitlines()[0]}", fix=_FIX) from None
    config.name_or_path = str(folder)
    return config


def check_values(
    kind: type[Any], document: Mapping[str, Any], folder: Path, parts: Mapping[str, Any] | None = None
) -> None:
    """Refuse keys of a config whose values are of another type or beyond any model's size.

    Raises:
        ModelError: Names the file, the key and what is wrong with it.
    """
    problem = _problem(document, {**_hints(kind), **_COMMON}, parts or {})
    if problem is not None:
        raise ModelError(f"{folder / CONFIG}: {problem}", fix=_FIX)


def _problem(
    document: Mapping[str, Any], hints: Mapping[str, Any], parts: Mapping[str, Any], prefix: str = ""
) -> str | None:
    for key, value in document.items():
        if key in parts:
            inner = parts[key]
            if not isinstance(value, Mapping):
                return f"`{prefix}{key}` is {shown(repr(value))}, not a mapping"
            names = inner if isinstance(inner, Mapping) else _hints(inner)
            missing = [] if isinstance(inner, Mapping) else [name for name in _needed(inner) if name not in value]
            if missing:
                return f"`{prefix}{key}` lacks {', '.join(missing)}"
            found = _problem(value, names, {}, f"{prefix}{key}.")
        else:
            found = problem_of(value, hints[key], f"`{prefix}{key}`") if key in hints else None
            found = found or _out_of_bounds(key, value, f"`{prefix}{key}`", hints)
        if found is not None:
            return found
    return None


def _out_of_bounds(key: str, value: Any, name: str, hints: Mapping[str, Any]) -> str | None:
    if key in ("dtype", "torch_dtype"):
        return _not_a_dtype(value, name)
    if key == "hidden_act":
        from transformers.activations import ACT2FN

        return None if value in ACT2FN else f"{name} is {shown(repr(value))}, which is no activation of transformers"
    if key in _ROPE and isinstance(value, Mapping):
        return _problem(value, _OF_ROPE, {}, f"{key}.")
    if key in ("rope_type", "type"):
        return None if value in _ROPES else f"{name} is {shown(repr(value))}, which is none of {', '.join(_ROPES)}"
    if key not in hints or isinstance(value, bool):
        return None
    for each in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(each, (int, float)):
            least, most = next((limits for pattern, *limits in _BOUNDS if re.fullmatch(pattern, key)), _SIZE)
            if not (math.isfinite(each) and least <= each <= most):
                return f"{name} is {shown(each)}, not within {least:g} and {most:g}"
    return None


def _not_a_dtype(value: Any, name: str) -> str | None:
    import torch

    found = None if value is None else getattr(torch, str(value).removeprefix("torch."), None)
    if value is None or (isinstance(found, torch.dtype) and found.is_floating_point):
        return None
    return f"{name} is {shown(repr(value))}, which is no floating dtype of torch"


def _hints(kind: type[Any]) -> dict[str, Any]:
    """Return the annotations of a class and of those that it derives from, its own winning."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base is not PreTrainedConfig and is_dataclass(base) and base.__module__ != PreTrainedConfig.__module__:
            found |= annotations_of(base)
    return found


def _needed(kind: type[Any]) -> list[str]:
    from dataclasses import MISSING

    return [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]


def _culprit(kind: type[Config], document: Mapping[str, Any]) -> str | None:
    """Return the key without which a config can be made, or None where there is no single one."""
    for key in document:
        try:
            kind(**{name: value for name, value in document.items() if name != key})
        except Exception:  # another key is at fault, or one more
            continue
        return key
    return None
