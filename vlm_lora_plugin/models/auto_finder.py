"""Waits for transformers' auto classes to be imported, and then has the families' classes registered there.

The only place that touches ``sys.meta_path`` and the loaders of others. Where the auto classes are imported already
they are told at once. Else a finder waits for them; it sees every import of a transformers module, and acts when the
outermost one is done, since the families' model code imports from transformers itself. Then it is gone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from vlm_lora_plugin.models.auto import AUTO_CLASSES, import_auto_modules
from vlm_lora_plugin.plugins.discovery import ENTRY_POINT_GROUP, installed_entries
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.plugins.registry import after_loading

PACKAGE = "transformers"


def install() -> None:
    """Import the families' ``auto_modules`` now, or as soon as transformers' auto classes are imported."""
    if look_again not in after_loading:
        after_loading.append(look_again)
    if any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        return
    waiting = _Waiting(due=AUTO_CLASSES in sys.modules)
    sys.meta_path.insert(0, waiting)
    waiting.import_if_due()


def look_again() -> None:
    """Do what was put off while an adapter was being loaded, now that it is."""
    for finder in [finder for finder in sys.meta_path if isinstance(finder, _Waiting)]:
        finder.import_if_due()


def adapter_packages() -> frozenset[str]:
    """Return the top-level packages of the installed adapters. Reads every distribution's metadata: slow."""
    entries = installed_entries(ENTRY_POINT_GROUP).values()
    return frozenset(entry.value.partition(".")[0] for claims in entries for entry in claims)


def half_imported(packages: frozenset[str]) -> ModuleType | None:
    """Return a module of these packages whose import is not done: it lacks names, or would be registered twice."""
    modules = list(sys.modules.items())
    return next((m for name, m in modules if name.partition(".")[0] in packages and _is_initialising(m)), None)


def _is_initialising(module: ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


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
        self._packages: frozenset[str] | None = None  # read once: every import of anything may ask
        self._unfinished: ModuleType | None = None

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
            whole = not self._adapter_is_half_loaded()
        finally:
            self._looking = False
        if whole and self in sys.meta_path:
            sys.meta_path.remove(self)
            import_auto_modules()

    def _adapter_is_half_loaded(self) -> bool:
        """Return whether an installed adapter is being registered, or a module of its package imported."""
        if get_manager().is_loading or (self._unfinished is not None and _is_initialising(self._unfinished)):
            return True
        if self._packages is None:
            self._packages = adapter_packages()
        self._unfinished = half_imported(self._packages)
        return self._unfinished is not None
