"""A model's config on its own, where no weights are needed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.outside.files import reason
from vlm_lora_plugin.outside.json_text import read_json

CONFIG = "config.json"
MOST_BYTES = 2**23
"""Bytes of a config beyond which it is none; the largest published ones have some 100 kB."""


@contextmanager
def config_folder(path: Path) -> Iterator[Path]:
    """Give a folder that holds a ``config.json``, for as long as the ``with`` lasts.

    Args:
        path: A folder, which is given back as it is, or a config file: one named ``config.json`` stands for its
            folder, one of another name is copied into a temporary folder under that name.
    """
    if not path.is_file():
        yield path
    elif path.name == CONFIG:
        yield path.parent
    else:
        with TemporaryDirectory() as temporary:
            shutil.copyfile(path, Path(temporary) / CONFIG)
            yield Path(temporary)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a model folder's ``config.json``.

    Raises:
        ModelError: It is missing or no JSON object.
    """
    try:
        document = read_json(folder / CONFIG, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG} cannot be read: {reason(error)}") from None
    if not isinstance(document, dict):
        raise ModelError(f"{folder / CONFIG} holds no JSON object")
    return document
