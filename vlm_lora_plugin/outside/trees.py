"""What holds for every document, however it was written: bounded depth, and text that is text."""

from __future__ import annotations

from typing import Any

from vlm_lora_plugin.errors import DocumentError

MOST_LEVELS = 64
"""Levels of lists and mappings in one another. Nothing that is read here needs ten."""

MOST_DIGITS = 40
"""Digits of a whole number; one of 128 bits has 39."""


def check_tree(document: Any, *, text: bool = False) -> None:
    r"""Refuse what is nested so deeply that code which walks it would fail.

    Args:
        document: Lists, mappings and plain values.
        text: Refuse strings, too, that cannot be encoded: half a surrogate pair, which JSON can spell as ``\ud83d``.

    Raises:
        DocumentError: Says which.
    """
    level = [document]
    for _ in range(MOST_LEVELS + 1):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.values()
                if text:
                    below += value.keys()
            elif isinstance(value, list):
                below += value
            elif text and isinstance(value, str) and not value.isascii():
                _refuse_halves(value)
        if not below:
            return
        level = below
    raise DocumentError(f"nested more than {MOST_LEVELS} levels deep")


def whole_number(text: str, base: int = 10) -> int:
    """Return the whole number that digits spell.

    Raises:
        DocumentError: It has so many digits that it cannot be meant.
    """
    if len(text) > MOST_DIGITS:
        raise DocumentError(f"a number of {len(text):,} digits")
    return int(text, base)


def _refuse_halves(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise DocumentError(f"a text holds {half}, half of a surrogate pair, which is no character") from None
