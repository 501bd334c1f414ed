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

from vlm_lora_plugin.plugins.discovery import ENTRY_POINT_GROUP, installed_entries
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.plugins.registry import after_loading

PACKAGE = "transformers"
AUTO_CLASSES = "transformers.models.auto.modeling_auto"


def install() -> None:
    """Import the families' ``auto_modules`` now, or as soon as transformers' auto classes are imported."""
    if look_again not in after_loading:
        after_loading.append(look_again)
    if any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        return
    due = AUTO_CLASSES in sys.modules
    if due and not adapter_is_half_loaded():
        import_auto_modules()
    else:
        sys.meta_path.insert(0, _Waiting(due=due))


def look_again() -> None:
    """Do what was put off while an adapter was being loaded, now that it is."""
    for finder in [finder for finder in sys.meta_path if isinstance(finder, _Waiting)]:
        finder.import_if_due()


def import_auto_modules() -> None:
    """Import every family's ``auto_modules``, which register their classes.

    One that fails is left out with a warning: this runs inside somebody's import of transformers.
    """
    for family in get_manager().families().values():
        for name in family.auto_modules:
            try:
                import_module(name)
            except Exception as error:  # model code of others may raise anything
                warnings.warn(f"AutoModelForCausalLM cannot load {family.title}: {error!r}", stacklevel=2)


def adapter_is_half_loaded() -> bool:
    """Return whether an installed adapter is being registered, or a module of its package imported.

    It lacks names then, or would be registered twice.
    """
    if get_manager().is_loading:
        return True
    entries = installed_entries(ENTRY_POINT_GROUP).values()
    packages = {entry.value.partition(".")[0] for claims in entries for entry in claims}
    return any(
        name.partition(".")[0] in packages and getattr(getattr(module, "__spec__", None), "_initializing", False)
        for name, module in list(sys.modules.items())
    )


class _Waiting(MetaPathFinder):
    """Finds transformers' modules through the other finders, and notices when one has been executed.

    Args:
        due: The auto classes are there already; what is waited for is the first import, of anything, at which no
            adapter is half imported.
    """

    def __init__(self, *, due: bool) -> None:
        self._depth = 0
        self._due = due
        self._looking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self._due:
            self.import_if_due()
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
                self._import_when_whole()

        loader.exec_module = watched

    def import_if_due(self) -> None:
        """Import the families' ``auto_modules`` if the auto classes are there and no adapter is half loaded."""
        if self._due:
            self._import_when_whole()

    def _import_when_whole(self) -> None:
        self._due = True
        if self._looking:  # looking imports modules itself
            return
        self._looking = True
        try:
            whole = not adapter_is_half_loaded()
        finally:
            self._looking = False
        if whole and self in sys.meta_path:
            sys.meta_path.remove(self)
            import_auto_modules()
