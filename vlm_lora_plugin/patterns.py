"""Regular expressions that a recipe, a manifest or a family plugin brings: matched within a time limit.

A recipe may come from a stranger, and ``([a-z.]+)+!`` on the names of a model would never end. The syntax is that of
Python's ``re``; the matching is done by the package ``regex``, which can be told to give up.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterable

import regex

from vlm_lora_plugin.errors import RecipeError

SECONDS = 1.0
"""Processor seconds that one pattern may take on all the names of a model together; real ones take milliseconds."""

_NOT_A_REPEAT = re.compile(r"(?<!\\)(?:\\\\)*\{(?!\d*,?\d*\})")
"""A brace that counts nothing: a plain character to ``re``, an approximate match to ``regex``; in no name."""


class Matcher:
    """One pattern, or several of which any may match, against whole names within :data:`SECONDS` altogether.

    Args:
        patterns: A pattern in the syntax of ``re``, or several.
        what: Which pattern this is, the beginning of a sentence.

    Raises:
        RecipeError: One is not a regular expression.
    """

    def __init__(self, patterns: str | Iterable[str], *, what: str = "The pattern") -> None:
        texts = [patterns] if isinstance(patterns, str) else list(patterns)
        self._what = what
        self._compiled = [(text, _compiled(text, what)) for text in texts]
        self._left = dict.fromkeys(texts, SECONDS)

    def __call__(self, name: str) -> bool:
        """Return whether any of the patterns matches a name as a whole.

        Raises:
            RecipeError: One takes too long, with the names before it.
        """
        return any(self._matches(text, compiled, name) for text, compiled in self._compiled)

    def among(self, names: Iterable[str]) -> list[str]:
        """Return the names that match, in their order.

        Raises:
            RecipeError: A pattern takes too long.
        """
        return [name for name in names if self(name)]

    def _matches(self, text: str, compiled: regex.Pattern[str], name: str) -> bool:
        start = time.process_time()  # what the timeout of `regex` counts, too: a busy machine refuses nothing
        try:
            matched = compiled.fullmatch(name, timeout=self._left[text]) is not None
        except (TimeoutError, MemoryError):
            raise self._too_slow(text, name) from None
        self._left[text] -= time.process_time() - start
        if self._left[text] <= 0:
            raise self._too_slow(text, name)
        return matched

    def _too_slow(self, text: str, name: str) -> RecipeError:
        return RecipeError(
            f"{self._what} '{shortened(text)}' takes longer than {SECONDS:g} s to match the names of this model",
            why=f"It was given up at '{name}'; a repetition inside a repetition can go on for years.",
            fix="Write it without one: `.*` stands for any part of a name.",
        )


def shortened(text: str, most: int = 200) -> str:
    """Return a text, its middle left out where it is longer than ``most`` characters."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def _compiled(text: str, what: str) -> regex.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of sets inside sets, which both read alike today
            re.compile(text)  # `regex` alone knows more syntax, recursion among it
            if _NOT_A_REPEAT.search(text):
                raise re.error("a brace that holds no number; no name has braces")
            return regex.compile(text)
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
        reason = "it is nested too deeply" if isinstance(error, (RecursionError, MemoryError)) else str(error)
        raise RecipeError(
            f"{what} '{shortened(text)}' is not a regular expression: {reason}",
            fix="Write one of Python's, for example language.*\\.q_proj.",
        ) from None
