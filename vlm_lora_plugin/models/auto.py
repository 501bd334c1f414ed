"""Makes ``AutoModelForCausalLM`` know the families' models, without importing transformers for that.

Where transformers' auto classes are loaded already they are told at once. Else a finder waits for them; it
sees every import of a transformers module, and acts when the outermost one is done, since the families' model
code imports from transformers itself.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "transformers"
AUTO_CLASSES = "transformers.models.auto.modeling_auto"


def install() -> None:
    """Import the families' ``auto_modules`` now, or as soon as transformers' auto classes are imported."""
    if any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        return
    postponed = import_auto_modules() if AUTO_CLASSES in sys.modules else None
    if postponed is None or postponed:
        sys.meta_path.insert(0, _Waiting(postponed or ()))


def import_auto_modules(names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Import every family's ``auto_modules``, which register their classes.

    One that fails is left out with a warning: this runs inside somebody's import of transformers. One that is
    being imported at this moment registers its classes when it is done.

    Args:
        names: Only these modules; None for all.

    Returns:
        The modules that could not be imported yet, because another module of their package is half imported.
    """
    from vlm_lora_plugin.manager import get_manager

    postponed = []
    for family in get_manager().families().values():
        for name in family.auto_modules:
            if names is not None and name not in names:
                continue
            if name not in sys.modules and _is_half_imported(name.partition(".")[0]):
                postponed.append(name)
                continue
            try:
                import_module(name)
            except Exception as error:  # model code of others may raise anything
                warnings.warn(f"AutoModelForCausalLM cannot load {family.title}: {error!r}", stacklevel=2)
    return tuple(postponed)


def _is_half_imported(package: str) -> bool:
    """Return whether a module of a package is being imported, so that not all of its names can be had yet."""
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == package]
    return any(getattr(getattr(module, "__spec__", None), "_initializing", False) for module in modules)


class _Waiting(MetaPathFinder):
    """Finds transformers' modules through the other finders, and notices when one has been executed.

    Args:
        postponed: Modules that are to be imported with the first import, of anything, at which they can be.
    """

    def __init__(self, postponed: Sequence[str] = ()) -> None:
        self._depth = 0
        self._postponed = tuple(postponed)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self._postponed:
            self._import(self._postponed)
            return None
        if fullname.partition(".")[0] != PACKAGE:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((found for finder in others if (found := finder.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader)
        return spec

    def _watch(self, loader: Any) -> None:
        execute = loader.exec_module

        def watched(module: ModuleType) -> None:
            self._depth += 1
            try:
                execute(module)
            finally:
                self._depth -= 1
            if self._depth == 0 and AUTO_CLASSES in sys.modules and self in sys.meta_path:
                self._import(None)

        loader.exec_module = watched

    def _import(self, names: Sequence[str] | None) -> None:
        sys.meta_path.remove(self)
        self._postponed = import_auto_modules(names)
        if self._postponed:
            sys.meta_path.insert(0, self)
