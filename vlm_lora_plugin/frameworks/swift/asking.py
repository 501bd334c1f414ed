"""``swift infer`` on a data file: its images are looked up beside the file first, as in training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from vlm_lora_plugin.frameworks.swift.families import own_types

IMAGES = "images"
"""The column in which Swift's preprocessing leaves images, as paths or as mappings with one."""

_ours: ContextVar[bool] = ContextVar("ours", default=False)


@contextmanager
def _of_our_families() -> Iterator[None]:
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)


def only_for_our_families(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what reads the data of ``swift infer``, with our look-up of images where the model is ours."""

    def _prepare_val_dataset(self: Any) -> Any:
        if self.args.model_type not in own_types():
            return original(self)
        with _of_our_families():
            return original(self)

    return _prepare_val_dataset


def beside_the_file(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return what reads one data file for Swift, relative images that stand beside it being named by whole paths.

    Others stay as they are: Swift looks for them in the working directory.
    """

    def _load_dataset_path(self: Any, dataset_path: str, *args: Any, **kwargs: Any) -> Any:
        data = original(self, dataset_path, *args, **kwargs)
        if not _ours.get() or IMAGES not in (data.column_names or ()):
            return data
        folder = Path(dataset_path).absolute().parent
        return data.map(
            lambda row: {IMAGES: [_whole(image, folder) for image in row[IMAGES] or ()]},
            features=data.features,
            load_from_cache_file=False,
        )

    return _load_dataset_path


def _whole(image: Any, folder: Path) -> Any:
    if isinstance(image, Mapping):
        path = image.get("path")
        return image if image.get("bytes") or not path else {**image, "path": _whole(path, folder)}
    if not isinstance(image, str) or os.path.isabs(image):
        return image
    try:
        found = (folder / image).is_file()
    except (OSError, ValueError):  # too long for a path: base64 or an address
        return image
    return str(folder / image) if found else image
