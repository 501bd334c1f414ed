"""What Swift has taken from the ``args.json`` of a model or adapter folder, and what of it is refused.

Swift writes a run's arguments beside its checkpoints and fills from there whatever a later command leaves out: the
model, its type, plugin files to import, the attention's implementation. Such a folder may be a stranger's. What could
make Swift run code is taken from it only where it names a local folder of one of our families; all else must stand on
the command line, where the user has named it. ``launch.py`` sees to the plugin files, which Swift imports first.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from vlm_lora_plugin.checkpoint.files import MANIFEST
from vlm_lora_plugin.errors import SwiftError
from vlm_lora_plugin.frameworks.swift.families import types_of
from vlm_lora_plugin.frameworks.swift.location import PLUGIN_FILE_NAME
from vlm_lora_plugin.frameworks.swift.names import TUNER
from vlm_lora_plugin.frameworks.swift.options.explicit import named_options
from vlm_lora_plugin.frameworks.swift.recognition import family_of
from vlm_lora_plugin.outside.files import reason
from vlm_lora_plugin.outside.json_text import read_json

FILE = "args.json"

_DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".txt", ".parquet")
_DATA_KEYS = ("dataset", "val_dataset", "cached_dataset", "cached_val_dataset")

logger = logging.getLogger(__name__)


def check_folder_arguments(arguments: Any, argv: Sequence[str] | None = None) -> None:
    """Refuse what an ``args.json`` has filled in and would make Swift run code.

    Args:
        arguments: Swift's dataclass of arguments, before anything is made of them.
        argv: The command line; None for this process's.

    Raises:
        SwiftError: Names the file, the key and the option to give instead.
    """
    folder = getattr(arguments, "ckpt_dir", None)
    if not folder or not getattr(arguments, "load_args", False):
        return
    file = Path(folder) / FILE
    try:
        written = read_json(file)
    except (OSError, ValueError) as error:
        raise SwiftError(f"{file} cannot be read: {reason(error)}", fix="Give another folder.") from None
    if not isinstance(written, Mapping):
        raise SwiftError(f"{file} does not hold the arguments of a run", fix="Give another folder.")
    named = set(named_options(sys.argv[1:] if argv is None else argv, [field.name for field in fields(arguments)]))
    taken = {
        key: value
        for key, value in written.items()
        if value is not None and key not in named and getattr(arguments, key, None) == value
    }
    _check_model(arguments, taken, file)
    _check_implementations(taken, file)
    if getattr(arguments, "load_data_args", False):
        _check_data(taken, file)
    _check_tuner(arguments, folder)
    _tell_of_plugins(arguments, written, file)


def _check_model(arguments: Any, taken: Mapping[str, Any], file: Path) -> None:
    model = taken.get("model")
    if "model" in taken and (not isinstance(model, str) or family_of(Path(model).expanduser()) is None):
        raise SwiftError(
            f"{file} names the model {model!r}, which is not a folder of any installed family",
            why="Swift would load it from wherever that is, and run the code that it brings.",
            fix="Give --model yourself.",
        )
    if "model_type" not in taken:
        return
    folder = str(getattr(arguments, "model", None) or "")
    family = family_of(Path(folder).expanduser()) if folder else None
    if family is not None and taken["model_type"] not in types_of(family):
        raise SwiftError(
            f"{file} says model_type {taken['model_type']!r}; {folder} holds a model of the family {family.name}",
            why="Swift would run the code that the model folder brings.",
            fix=f"Give --model_type {family.name}.",
        )


def _check_implementations(taken: Mapping[str, Any], file: Path) -> None:
    for key in ("attn_impl", "experts_impl"):
        if "/" in str(taken.get(key, "")):
            raise SwiftError(
                f"{file} says {key} {taken[key]!r}, which is code on a hub",
                why="transformers would download and run it.",
                fix=f"Give --{key} yourself.",
            )


def _check_data(taken: Mapping[str, Any], file: Path) -> None:
    if taken.get("custom_dataset_info"):
        raise SwiftError(
            f"{file} names custom_dataset_info {taken['custom_dataset_info']!r}",
            why="Such a file may name data sets that bring code.",
            fix="Give --custom_dataset_info yourself, or leave out --load_data_args.",
        )
    for key in _DATA_KEYS:
        for name in _listed(taken.get(key)):
            path = Path(str(name).partition("#")[0])
            if not (path.suffix.lower() in _DATA_SUFFIXES and path.is_file()):
                raise SwiftError(
                    f"{file} names the {key} {name!r}, which is not a data file of this machine",
                    why="Swift would load it from wherever that is, and run the code that it brings.",
                    fix=f"Give --{key} yourself, or leave out --load_data_args.",
                )


def _check_tuner(arguments: Any, folder: str) -> None:
    tuner = getattr(arguments, "tuner_type", None)
    if tuner != TUNER and (Path(folder) / MANIFEST).is_file():
        raise SwiftError(
            f"{folder} holds an adapter of vlm-lora-plugin, and its {FILE} says tuner_type {tuner!r}",
            why="Swift would load a part of what was trained, or none of it.",
            fix=f"Write tuner_type: {TUNER} there, as it was when the adapter was written.",
        )


def _tell_of_plugins(arguments: Any, written: Mapping[str, Any], file: Path) -> None:
    loaded = {str(Path(path).resolve()) for path in _listed(getattr(arguments, "external_plugins", None))}
    left = [
        str(path)
        for path in _listed(written.get("external_plugins"))
        if Path(str(path)).name != PLUGIN_FILE_NAME and str(Path(str(path)).resolve()) not in loaded
    ]
    if left:
        logger.warning(
            "%s names plugin files that were not run, because the folder may be a stranger's: %s. "
            "If this run needs them, give --external_plugins %s",
            *(file, ", ".join(left), " ".join(left)),
        )


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
