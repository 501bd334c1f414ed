"""Upstream's ``data.txt``: JSON files, and how many thousand samples of each an epoch has."""

from __future__ import annotations

import math
from pathlib import Path

from vlm_lora_plugin.contract import MixturePart
from vlm_lora_plugin.errors import DataError
from vlm_lora_plugin.models import read_text

SUFFIX = ".txt"
UNIT = 1000

_LIKE_THIS = "A line looks like this: `pictures.json 10`, for 10,000 samples of that file an epoch."


def read_mixture(path: Path) -> list[MixturePart] | None:
    """Read a ``data.txt``, in upstream's words ``<json path> <sample number (k)>`` a line.

    Files with fewer rows are up-sampled and those with more down-sampled to ``int(number * 1000)``, upstream's
    ``given_num``. Its data set then draws from them at random, pictures and texts in a fixed rhythm whatever the
    numbers say; here an epoch holds each number of samples, as upstream's README promises.

    Args:
        path: The file.

    Returns:
        The parts, relative paths starting at the file's folder; None when its name does not end in ``.txt``.

    Raises:
        DataError: The file cannot be read, or a line is wrong; names the line.
    """
    if path.suffix.lower() != SUFFIX:
        return None
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The mixture {path} cannot be read: {getattr(error, 'strerror', None) or error}", fix="Check the path."
        ) from None
    parts = [_part(line, path, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not parts:
        raise DataError(f"The mixture {path} names no file", fix=_LIKE_THIS)
    return parts


def _part(line: str, path: Path, origin: str) -> MixturePart:
    words = line.rsplit(maxsplit=1)
    try:
        thousands = float(words[1])
    except (IndexError, ValueError):
        raise DataError(f"{origin}: {line.strip()!r} is not a path and number", fix=_LIKE_THIS) from None
    if not math.isfinite(thousands) or int(thousands * UNIT) < 1:
        raise DataError(
            f"{origin}: {words[1]} thousand samples are none at all", fix="Write 0.001 or more, or remove the line."
        )
    file = path.parent / words[0].strip()
    if not file.is_file():
        raise DataError(f"{origin}: there is no data file {file}", fix="Relative paths start at the mixture's folder.")
    return MixturePart(file, int(thousands * UNIT), origin)
