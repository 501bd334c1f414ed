"""Finds adapters, isolates the broken ones, and asks the right one.

Discovery never lets one plugin take down another: an entry point that fails to import is recorded with its
traceback and stops only the run that needs it. Order is by name. Nothing is imported before it is needed.
"""

from __future__ import annotations

import os
import traceback
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from vlm_lora_plugin.errors import AdapterError, ModelError, listed, nearest
from vlm_lora_plugin.hookspecs import ENTRY_POINT_GROUP, PROJECT_NAME, AdapterSpecs
from vlm_lora_plugin.types import AdapterRecord, Family

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.types import Hardware, Patch, TrainableSelection

OWN_DISTRIBUTION = "vlm-lora-plugin"
DISABLE_VARIABLE = "VLM_LORA_DISABLE_PLUGINS"


class AdapterManager:
    """Discovery and calling of adapters.

    Args:
        discover: Read the installed entry points. Without it only :meth:`register` adds adapters.
    """

    def __init__(self, *, discover: bool = True) -> None:
        self._pm = pluggy.PluginManager(PROJECT_NAME)
        self._pm.add_hookspecs(AdapterSpecs)
        self._families: dict[str, Family] = {}
        self._plugins: dict[str, object] = {}
        self._errors: dict[str, str] = {}
        self._entries: dict[str, list[EntryPoint]] = _installed_entries() if discover else {}

    def register(self, adapter: object, name: str | None = None) -> Family | None:
        """Add an adapter or a policy plugin by hand.

        Returns:
            The family it describes, or None for a plugin without ``describe_family``.

        Raises:
            AdapterError: Its hooks do not fit the specification, or its family's name is taken.
        """
        try:
            self._pm.register(adapter, name=name)
            self._pm.check_pending()
        except (ValueError, pluggy.PluginValidationError) as error:
            if self._pm.is_registered(adapter):
                self._pm.unregister(adapter)
            raise AdapterError(f"{name or adapter!r} is no valid adapter: {error}") from error
        if not any(caller.name == "describe_family" for caller in self._pm.get_hookcallers(adapter) or ()):
            return None
        family: Family = self._ask(adapter, "describe_family")
        if family.name in self._plugins:
            self._pm.unregister(adapter)
            raise AdapterError(f"Two adapters claim the family {family.name}", fix="Unregister one of them.")
        self._families[family.name] = family
        self._plugins[family.name] = adapter
        return family

    def unregister(self, adapter: object) -> None:
        """Remove an adapter that :meth:`register` added."""
        self._pm.unregister(adapter)
        for name, plugin in list(self._plugins.items()):
            if plugin is adapter:
                del self._plugins[name], self._families[name]

    def records(self) -> tuple[AdapterRecord, ...]:
        """Return every installed adapter with what became of it, sorted by name. Imports all of them."""
        found = []
        for name, claims in sorted(self._entries.items()):
            with suppress(AdapterError):
                self.family(name)
            found += [
                AdapterRecord(name, _distribution(entry), entry.value, self._errors.get(name), _is_own(entry))
                for entry in claims
            ]
        return tuple(found)

    def names(self) -> list[str]:
        """Return the names of all families, loaded or not, without importing any."""
        return sorted({*self._entries, *self._families})

    def family(self, name: str) -> Family:
        """Return the family of this name, importing its adapter if that has not happened yet.

        Raises:
            AdapterError: No such adapter, two distributions claim the name, or it failed to import.
        """
        if name in self._families:
            return self._families[name]
        if name not in self._entries:
            raise AdapterError(f"No adapter for the family '{name}' is installed", fix=nearest(name, self.names()))
        if name not in self._errors:
            self._load(name)
        if name in self._errors:
            claims = " and ".join(_distribution(entry) for entry in self._entries[name])
            raise AdapterError(
                f"The adapter {name} of {claims} cannot be used:\n{self._errors[name]}",
                fix=f"Mend or uninstall it; {DISABLE_VARIABLE}=1 leaves all third-party adapters out.",
            )
        return self._families[name]

    def families(self) -> dict[str, Family]:
        """Return every family whose adapter works, by name. Broken ones are in :meth:`records`."""
        working = {}
        for name in self.names():
            try:
                working[name] = self.family(name)
            except AdapterError:
                continue
        return working

    def family_of_folder(self, folder: Path) -> Family:
        """Return the family that recognises a model folder by its content.

        Raises:
            ModelError: No family, or more than one, recognises it.
        """
        if not folder.is_dir():
            raise ModelError(f"There is no model folder {folder}", fix="Give the path of a downloaded model.")
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder} is no model folder: it has no config.json", fix="Give the folder that holds config.json."
            )
        matches = [family for _, family in sorted(self.families().items()) if family.recognises(folder)]
        if len(matches) == 1:
            return matches[0]
        broken = [record.name for record in self.records() if record.error]
        hint = f"These adapters are broken and were not asked: {', '.join(broken)}." if broken else ""
        if matches:
            raise ModelError(
                f"{folder} is recognised by {listed(f.name for f in matches)}; it must be one",
                fix="Uninstall one adapter.",
            )
        raise ModelError(
            f"{folder} holds none of the known models ({', '.join(f.title for f in self.families().values())})",
            why=hint,
            fix="Look at model_type and architectures in its config.json: it must be one of the families above.",
        )

    def family_of_model(self, model: nn.Module) -> Family:
        """Return the family that owns a model object, by its config's ``model_type``.

        Raises:
            ModelError: No family owns it.
        """
        model_type = getattr(getattr(model, "config", None), "model_type", None)
        for family in self.families().values():
            if model_type in family.model_types:
                return family
        known = [kind for family in self.families().values() for kind in family.model_types]
        raise ModelError(
            f"No adapter owns a {type(model).__name__} of model type {model_type!r}",
            fix=f"Load the model with vlm_lora_plugin.load(folder). {nearest(str(model_type), known)}",
        )

    def select_trainable(self, family: Family, model: nn.Module, recipe: Recipe) -> TrainableSelection:
        """Ask the family's adapter for its rules."""
        result: TrainableSelection = self._ask_family(family, "select_trainable", model=model, recipe=recipe)
        return result

    def wrap_forward(self, family: Family, model: nn.Module, recipe: Recipe) -> Sequence[Patch]:
        """Ask the family's adapter for its patches; an adapter without the hook has none."""
        return self._ask_family(family, "wrap_forward", model=model, recipe=recipe) or ()

    def deepspeed_config(self, family: Family, recipe: Recipe, hardware: Hardware) -> Mapping[str, Any]:
        """Ask the family's adapter for its ZeRO overrides; an adapter without the hook has none."""
        return self._ask_family(family, "deepspeed_config", recipe=recipe, hardware=hardware) or {}

    def _ask_family(self, family: Family, hook: str, **arguments: Any) -> Any:
        plugin = self._plugins.get(family.name)
        if plugin is None:
            self.family(family.name)
            plugin = self._plugins[family.name]
        return self._ask(plugin, hook, **arguments)

    def _ask(self, plugin: object, hook: str, **arguments: Any) -> Any:
        others = [other for other in self._plugins.values() if other is not plugin]
        caller = self._pm.subset_hook_caller(hook, remove_plugins=others)
        try:
            return caller(**arguments)
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"Raised in the hook {hook} of the adapter {self._pm.get_name(plugin)}.")
            raise

    def _load(self, name: str) -> None:
        claims = self._entries[name]
        if len(claims) > 1:
            self._errors[name] = (
                f"{len(claims)} distributions claim this name: {', '.join(_distribution(e) for e in claims)}"
            )
            return
        try:
            adapter = claims[0].load()
            family = self.register(adapter, name=name)
            if family is not None and family.name != name:
                self.unregister(adapter)
                raise AdapterError(f"The entry point {name} describes a family named {family.name}")
            if family is None:
                raise AdapterError(f"{claims[0].value} has no describe_family hook")
        except Exception:  # a plugin may raise anything; it is kept and shown to whoever needs this family
            self._errors[name] = traceback.format_exc()


def _installed_entries() -> dict[str, list[EntryPoint]]:
    disabled = os.environ.get(DISABLE_VARIABLE, "").lower() not in {"", "0", "false", "no"}
    found: defaultdict[str, list[EntryPoint]] = defaultdict(list)
    seen = set()
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: (e.name, _distribution(e))):
        claim = (entry.name, entry.value, _distribution(entry))
        if claim in seen or (disabled and not _is_own(entry)):
            continue
        seen.add(claim)
        found[entry.name].append(entry)
    return dict(found)


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


def _is_own(entry: EntryPoint) -> bool:
    return entry.dist is not None and entry.dist.name.replace("_", "-").lower() == OWN_DISTRIBUTION


@lru_cache(maxsize=1)
def get_manager() -> AdapterManager:
    """Return the process's manager, made on first use."""
    return AdapterManager()
