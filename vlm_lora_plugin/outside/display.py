"""Showing text that others wrote: no character of it acts on a terminal, and none stops a report."""

from __future__ import annotations

import re
import sys
from typing import Any

MOST_SHOWN = 300
"""Characters of one value from a file, such as a path, that a message shows."""

_LONGEST_WORD = 2000
"""Characters without white space from which on a message shows only both ends: the longest useful path is shorter."""

# C0 but tab and new line, DEL, C1; marks and overrides of direction; line and paragraph separators; invisible
# operators; byte-order mark; annotations; surrogates; tags.
_ACTING = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f"
)
_IN_MESSAGES = re.compile(f"[{_ACTING}]")
_IN_VALUES = re.compile(f"[\t\n{_ACTING}]")
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD},}}")


def safe(text: str) -> str:
    r"""Return a message in which whatever would act on a terminal is spelled out; tabs and new lines stay.

    Control characters (with them every ANSI and OSC sequence), marks that turn the direction of writing, invisible
    ones and lone surrogates become ``\x1b`` and the like. Of words without end only both ends are left.

    Example:
        >>> safe("red\x1b[31m")
        'red\\x1b[31m'
    """
    return _LONG_WORD.sub(lambda word: shortened(word[0]), harmless(text))


def harmless(text: str) -> str:
    """Return the same as :func:`safe` at full length, for what must not lose a character, such as a recipe."""
    return _IN_MESSAGES.sub(_spelled, text)


def shown(value: object, most: int = MOST_SHOWN) -> str:
    r"""Return one value from a file as it stands in a message: on one line, harmless, and not too long.

    Args:
        value: A path, a key, a text.
        most: Characters beyond which only both ends are shown.

    Example:
        >>> shown("a\nb")
        'a\\nb'
    """
    return shortened(_IN_VALUES.sub(_spelled, str(value)), most)


def shortened(text: str, most: int = MOST_SHOWN) -> str:
    """Return a text, or where it is longer than ``most`` characters both ends of it and how long it is.

    Example:
        >>> shortened("0123456789" * 4, 12)
        '01234567...6789 (40 characters)'
    """
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end]}...{text[-end:]} ({len(text):,} characters)"


def never_crash(*streams: Any) -> None:
    """Have streams (by default standard output and error) spell out what their encoding lacks, rather than raise.

    A console in ASCII or a POSIX locale then shows an escaped name, and the exit code is what it always is.
    """
    for stream in streams or (sys.stdout, sys.stderr):
        # A POSIX locale gives `surrogateescape`, which raises as well for what was no byte to begin with.
        if getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _spelled(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
