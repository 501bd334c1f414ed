"""Which of Swift's options were given, as opposed to left at their defaults."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any


def given_options(arguments: Any, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Return name -> value of the options that somebody asked for.

    Those are the ones named on the command line (Swift has put a YAML or JSON file's there too), and the ones
    whose value is not the default, as with arguments that were made in Python.

    Args:
        arguments: Swift's dataclass of arguments.
        argv: The command line; None for this process's.
    """
    every = {field.name: field for field in fields(arguments)}
    named = set(named_options(sys.argv[1:] if argv is None else argv, every))
    return {
        name: getattr(arguments, name)
        for name, field in every.items()
        if name in named or getattr(arguments, name) != default_of(field)
    }


def default_of(field: Field[Any]) -> Any:
    """Return the default of a dataclass's field, or None when it has none."""
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else None


def named_options(argv: Iterable[str], known: Iterable[str]) -> Iterable[str]:
    """Yield the names, of those that are known, of the options on a command line, abbreviated ones too."""
    names = list(known)
    for word in argv:
        if not word.startswith("--"):
            continue
        name = word[2:].partition("=")[0].replace("-", "_")
        if name not in names:
            name = name.removeprefix("no_") if name.removeprefix("no_") in names else name
        # argparse takes any unambiguous beginning of a name
        matches = [name] if name in names else [full for full in names if full.startswith(name)]
        if len(matches) == 1:
            yield matches[0]
