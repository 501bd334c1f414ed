"""Why an image is not there: the ways in which a path can miss a file that is."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from vlm_lora_plugin.outside.display import shown
from vlm_lora_plugin.outside.files import is_file

_MOST_NAMES = 10_000
"""Names of a folder that are compared; looking for a spelling in larger ones would take too long."""


def other_spelling(path: Path) -> str | None:
    """Return what to do about a path that names no file, where another spelling of it does; else None.

    Nothing is opened under another name than the one that was written.
    """
    for candidate, difference in _spellings(path):
        if candidate != path and is_file(candidate):
            return f"There is {shown(candidate)}: {difference}."
    return None


def _spellings(path: Path) -> Iterator[tuple[Path, str]]:
    text = str(path)
    if "\\" in text:
        yield Path(text.replace("\\", "/")), "write the path with / rather than Windows' \\"
    if "%" in text:
        yield Path(unquote(text)), "write the name itself, not as a URL has it (%20 is a space)"
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, text)
        yield (
            Path(name),
            f"its accents are encoded in another way, {form}, which looks the same; rename the file, or write its name "
            f"so (Python: unicodedata.normalize('{form}', name))",
        )
    if text != text.strip():
        yield Path(text.strip()), "leave out the white space around the path"
    yield from _same_but_case(path)


def _same_but_case(path: Path) -> Iterator[tuple[Path, str]]:
    try:
        names = [entry.name for _, entry in zip(range(_MOST_NAMES), path.parent.iterdir(), strict=False)]
    except (OSError, ValueError):
        return
    for name in names:
        if name.casefold() == path.name.casefold():
            yield path.with_name(name), "capital and small letters differ"
