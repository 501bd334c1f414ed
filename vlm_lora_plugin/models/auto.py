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
    if AUTO_CLASSES in sys.modules:
        import_auto_modules()
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


def import_auto_modules() -> None:
    """Import every family's ``auto_modules``, which register their classes.

    One that fails is left out with a warning: this runs inside somebody's import of transformers. One that is
    being imported at this moment registers its classes when it is done.
    """
    from vlm_lora_plugin.manager import get_manager

    for family in get_manager().families().values():
        for name in family.auto_modules:
            try:
                import_module(name)
            except Exception as error:  # model code of others may raise anything
                warnings.warn(f"AutoModelForCausalLM cannot load {family.title}: {error!r}", stacklevel=2)


class _Waiting(MetaPathFinder):
    """Finds transformers' modules through the other finders, and notices when one has been executed."""

    def __init__(self) -> None:
        self._depth = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
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
                sys.meta_path.remove(self)
                import_auto_modules()

        loader.exec_module = watched
