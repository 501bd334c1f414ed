"""Python processes that this package starts: they never import from the working directory.

``python -m`` and ``python -c`` put that folder first on the path, and with it whatever ``torch.py`` or ``pluggy.py``
lies in a downloaded one. Python 3.11 leaves it out where ``PYTHONSAFEPATH`` is set, which children inherit; Python 3.10
knows only that a script's own folder comes first, so there a script of ours runs the module.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SAFE_PATH: Mapping[str, str] = {"PYTHONSAFEPATH": "1"}
"""What every child finds in its environment, and so every process that it starts."""

RUNNER = Path(__file__).with_name("run_module.py")
"""A script that runs the module which its first argument names, without its own folder on the path."""

_KNOWS_SAFE_PATH = sys.version_info >= (3, 11)


def environment(further: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a child: this process's, a safe path, and what else is given."""
    return {**os.environ, **SAFE_PATH, **(further or {})}


def become_safe() -> None:
    """Give all children of this process a safe path, those that libraries start too."""
    os.environ.update(SAFE_PATH)


def module_line(module: str) -> list[str]:
    """Return the program line of a Python process that runs a module; its arguments follow."""
    return [sys.executable, *module_words(module)]


def module_words(module: str) -> list[str]:
    """Return what follows ``python`` in :func:`module_line`."""
    return ["-m", module] if _KNOWS_SAFE_PATH else [str(RUNNER), module]


def code_line(code: str) -> list[str]:
    """Return the program line of a Python process that runs code; its arguments follow."""
    return [sys.executable, "-c", code if _KNOWS_SAFE_PATH else f"import sys; sys.path[:1] = []\n{code}"]


def isolated_line(code: str) -> list[str]:
    """Return the program line of a Python process that runs code on the standard library alone."""
    return [sys.executable, "-I", "-S", "-c", code]


def safe_line(line: Sequence[str]) -> list[str]:
    """Return a program line of somebody else's with the same done to its ``-m``."""
    if list(line[:2]) != [sys.executable, "-m"]:
        return list(line)
    return [*module_line(line[2]), *line[3:]]
