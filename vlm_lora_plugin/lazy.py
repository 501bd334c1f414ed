"""Packages that give names of heavy modules without importing them before a name is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package, which imports a name's module when the name is first asked for.

    Beside it the package imports the same names below ``if TYPE_CHECKING:``, for type checkers and editors.

    Args:
        package: The package's ``__name__``.
        names: Module -> the names in it that the package gives.
    """
    modules = {name: module for module, held in names.items() for name in held}

    def get(name: str) -> Any:
        if name in modules:
            return getattr(import_module(modules[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
