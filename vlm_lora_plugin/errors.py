"""Every error this package raises on purpose.

All derive from :class:`VlmLoraError`. A message has up to three parts: what failed and on which names,
why it matters, and what to type instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from vlm_lora_plugin.outside.display import safe


class VlmLoraError(Exception):
    """Root of all errors raised by this package.

    Messages name what stands in files of others, so control characters and the like are spelled out in each part.

    Args:
        what: What failed, with the names it failed on.
        why: Why that matters, in one sentence; may be empty.
        fix: What the user should do or type instead; may be empty.
    """

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix = safe(what), safe(why), safe(fix)
        super().__init__("\n".join(part for part in (what, why, fix) if part))

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how it is made again in another process: constructors here take keywords, which pickle drops."""
        return _remade, (type(self), self.args, self.__dict__)


def _remade(kind: type[VlmLoraError], arguments: tuple[Any, ...], state: dict[str, Any]) -> VlmLoraError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(state)
    return error


class AdapterError(VlmLoraError):
    """An adapter could not be found, imported or asked."""


class RecipeError(VlmLoraError):
    """A recipe has an unknown key, an impossible value or an unknown preset."""


class HardwareError(VlmLoraError):
    """The hardware is unknown, or what is asked of it cannot be done."""


class PlanError(VlmLoraError):
    """The memory of a step cannot be told: an operation has no shape without values, or rows have none."""


class SelectionError(VlmLoraError):
    """The rules of a recipe do not fit the model."""


class ModelError(VlmLoraError):
    """A model folder cannot be recognised, or a model is not in the state that is asked for."""


class WeightsError(VlmLoraError):
    """A checkpoint's tensors do not fit the model: missing, extra, or of another shape."""


class DataError(VlmLoraError):
    """A training example cannot be used: broken row, image or encoding."""


class TooLongError(DataError):
    """A row needs more tokens than ``data.max_length`` allows.

    Args:
        what: The row, and what it needs.
        needed: The smallest ``data.max_length`` with which it fits.
        fits: A setting and its largest value with which it fits, ``("data.processor.hd_num", 9)``; the value is 0
            when none is small enough. None where no setting changes the length.
        why: Why it matters.
    """

    def __init__(self, what: str, *, needed: int, fits: tuple[str, int] | None = None, why: str = "") -> None:
        self.needed, self.fits = needed, fits
        super().__init__(what, why=why, fix=ways_to_fit([self]))


def ways_to_fit(rows: Sequence[TooLongError]) -> str:
    """Return what makes all of some rows fit: a ``data.max_length``, or a setting of the family's processor."""
    ways = [f"set data.max_length to {max(row.needed for row in rows)}"]
    settings = {row.fits[0] for row in rows if row.fits}
    if len(settings) == 1 and all(row.fits and row.fits[1] for row in rows):
        ways.append(f"{settings.pop()} to {min(row.fits[1] for row in rows if row.fits)}")
    which = "every one of them fits" if len(rows) > 1 else "it fits"
    return f"So that {which}, {' or '.join(ways)}. data.truncation_strategy right cuts text off the end instead."


class CheckpointError(VlmLoraError):
    """An adapter folder is incomplete, broken, or belongs to something else."""


class OutputError(VlmLoraError):
    """The folder that results should go to cannot be used."""


class TrainingError(VlmLoraError):
    """The training loop does not do what the recipe says."""


class SwiftError(VlmLoraError):
    """Swift cannot do what a recipe says, or is asked for something else than the recipe."""


class DocumentError(VlmLoraError, ValueError):
    """YAML or JSON from outside cannot be read; ``what`` is the rest of a sentence that names it."""


class DuplicateKeyError(DocumentError):
    """A key stands twice; every parser would take the last one and drop the others without a word.

    Args:
        what: Which key, and where.
        key: The key.
    """

    def __init__(self, what: str, *, key: str = "") -> None:
        self.key = key
        super().__init__(what)


def listed(names: Iterable[str], *, most: int = 5) -> str:
    """Return the first ``most`` names and how many there are in all: ``a, b, c (3 in all)``.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b, ... (3 in all)'
    """
    every = list(names)
    if len(every) == 1:
        return every[0]
    shown = ", ".join(every[:most])
    return f"{shown}{', ...' if len(every) > most else ''} ({len(every)} in all)"


def nearest(name: str, known: Sequence[str], *, most: int = 3) -> str:
    """Return a hint with the known names closest to ``name``, or all of them when none is close.

    Example:
        >>> nearest("lorra", ["lora", "full"])
        'Did you mean lora?'
    """
    close = get_close_matches(name, known, n=most, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"Known: {', '.join(sorted(known)) or 'none'}."
