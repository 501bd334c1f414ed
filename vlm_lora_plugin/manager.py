"""Finds adapters and policies, isolates the broken ones, and asks the right one.

Discovery never lets one adapter take down another: an entry point that fails to import is recorded with its
traceback and stops only the run that needs it. A broken policy stops every run, because a rule that is
silently not applied is worse than none. Order is by name. Nothing is imported before it is needed.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from vlm_lora_plugin.asking import ask
from vlm_lora_plugin.discovery import DISABLE_VARIABLE, distribution_of, installed_entries, is_own
from vlm_lora_plugin.errors import AdapterError, ModelError, listed, nearest
from vlm_lora_plugin.hookspecs import (
    ENTRY_POINT_GROUP,
    POLICY_ENTRY_POINT_GROUP,
    PROJECT_NAME,
    AdapterSpecs,
    hookimpl,
)
from vlm_lora_plugin.types import AdapterRecord, Family, TrainableSelection

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.types import Hardware, Patch


class _Defaults:
    """The answers of an adapter that leaves a hook out."""

    @hookimpl(trylast=True)
    def select_trainable(self, recipe: Recipe) -> TrainableSelection:
        return TrainableSelection(rules=tuple(recipe.rules))

    @hookimpl(trylast=True)
    def wrap_forward(self) -> Sequence[Patch]:
        return ()

    @hookimpl(trylast=True)
    def deepspeed_config(self) -> Mapping[str, Any]:
        return {}


class AdapterManager:
    """Discovery and calling of adapters and policies.

    Args:
        discover: Read the installed entry points. Without it only :meth:`register` adds adapters.
    """

    def __init__(self, *, discover: bool = True) -> None:
        self._pm = pluggy.PluginManager(PROJECT_NAME)
        self._pm.add_hookspecs(AdapterSpecs)
        self._pm.register(_Defaults(), name="defaults")
        self._families: dict[str, Family] = {}
        self._plugins: dict[str, object] = {}
        self._errors: dict[str, str] = {}
        self._entries = installed_entries(ENTRY_POINT_GROUP) if discover else {}
        self._policies = installed_entries(POLICY_ENTRY_POINT_GROUP) if discover else {}
        self._policy_errors: dict[str, str] | None = None

    def register(self, adapter: object, name: str | None = None) -> Family | None:
        """Add an adapter or a policy by hand.

        Returns:
            The family it describes, or None for a policy.

        Raises:
            AdapterError: Its hooks do not fit the specification, its family's name is taken, or it answers
                hooks without describing a family.
        """
        label = name or repr(adapter)
        if isinstance(adapter, type):
            raise AdapterError(f"{label} is a class; an instance or a module is needed", fix="Add the brackets ().")
        if self._pm.is_registered(adapter):
            raise AdapterError(f"{label} is registered already", fix="Register it once.")
        try:
            self._pm.register(adapter, name=name)
            self._pm.check_pending()
            answers = self._answers(adapter)
            if "describe_family" not in answers:
                if answers:
                    raise AdapterError(
                        f"{label} answers {listed(answers)} but has no describe_family hook",
                        why="It would answer for the families of others.",
                        fix="Give an adapter describe_family, and a policy only functions with hookimpl(wrapper=True).",
                    )
                return None
            family: Family = self._ask(adapter, "describe_family")
            if family.name in self._plugins:
                raise AdapterError(f"Two adapters claim the family {family.name}", fix="Unregister one of them.")
        except Exception as error:
            if self._pm.is_registered(adapter):
                self._pm.unregister(adapter)
            if isinstance(error, (ValueError, pluggy.PluginValidationError)):
                raise AdapterError(f"{label} is no valid adapter: {error}") from error
            raise
        self._families[family.name] = family
        self._plugins[family.name] = adapter
        return family

    def unregister(self, adapter: object) -> None:
        """Remove an adapter or policy that :meth:`register` added."""
        self._pm.unregister(adapter)
        for name, plugin in list(self._plugins.items()):
            if plugin is adapter:
                del self._plugins[name], self._families[name]

    def records(self) -> tuple[AdapterRecord, ...]:
        """Return every installed adapter, then every policy, with what became of it, each sorted by name.

        Imports all of them.
        """
        for name in self._entries:
            self._load(name)
        policy_errors = self._load_policies()
        adapters = [
            AdapterRecord(name, distribution_of(entry), entry.value, self._errors.get(name), is_own(entry))
            for name, claims in self._entries.items()
            for entry in claims
        ]
        policies = [
            AdapterRecord(
                name, distribution_of(entry), entry.value, policy_errors.get(name), is_own(entry), policy=True
            )
            for name, claims in self._policies.items()
            for entry in claims
        ]
        return (*adapters, *policies)

    def names(self) -> list[str]:
        """Return the names of all families, loaded or not, without importing any."""
        return sorted({*self._entries, *self._families})

    def family(self, name: str) -> Family:
        """Return the family of this name, importing its adapter if that has not happened yet.

        Raises:
            AdapterError: No such adapter, two distributions claim the name, it failed to import, or an
                installed policy did.
        """
        self._require_policies()
        if name in self._families:
            return self._families[name]
        if name not in self._entries:
            raise AdapterError(f"No adapter for the family '{name}' is installed", fix=nearest(name, self.names()))
        self._load(name)
        if name in self._errors:
            claims = " and ".join(distribution_of(entry) for entry in self._entries[name])
            raise AdapterError(
                f"The adapter {name} of {claims} cannot be used:\n{self._errors[name]}",
                fix=f"Mend or uninstall it; {DISABLE_VARIABLE}=1 leaves all third-party adapters out.",
            )
        return self._families[name]

    def families(self) -> dict[str, Family]:
        """Return every family whose adapter works, by name. Broken ones are in :meth:`records`.

        Raises:
            AdapterError: An installed policy is broken.
        """
        self._require_policies()
        return self.working_families()

    def working_families(self) -> dict[str, Family]:
        """Return the same without asking for policies: enough to list families, not to train one."""
        for name in self._entries:
            self._load(name)
        return dict(sorted(self._families.items()))

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
        matches, failed = [], []
        for family in self.families().values():
            try:
                if family.recognises(folder):
                    matches.append(family)
            except Exception as error:  # somebody else's adapter must not stop this one's
                failed.append(f"{family.name} ({type(error).__name__}: {error})")
        if len(matches) == 1:
            return matches[0]
        broken = [record.name for record in self.records() if record.error] + failed
        hint = f"These adapters are broken and could not be asked: {', '.join(broken)}." if broken else ""
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
        """Ask the family's adapter for its rules; without the hook they are the recipe's own."""
        result: TrainableSelection = self._ask_family(family, "select_trainable", model=model, recipe=recipe)
        return result

    def wrap_forward(self, family: Family, model: nn.Module, recipe: Recipe) -> Sequence[Patch]:
        """Ask the family's adapter for its patches; an adapter without the hook has none."""
        result: Sequence[Patch] = self._ask_family(family, "wrap_forward", model=model, recipe=recipe)
        return result

    def deepspeed_config(self, family: Family, recipe: Recipe, hardware: Hardware) -> Mapping[str, Any]:
        """Ask the family's adapter for its ZeRO overrides; an adapter without the hook has none."""
        result: Mapping[str, Any] = self._ask_family(family, "deepspeed_config", recipe=recipe, hardware=hardware)
        return result

    def _ask_family(self, family: Family, hook: str, **arguments: Any) -> Any:
        self.family(family.name)
        return self._ask(self._plugins[family.name], hook, **arguments)

    def _ask(self, plugin: object, hook: str, **arguments: Any) -> Any:
        self._load_policies()
        others = [other for other in self._plugins.values() if other is not plugin]
        return ask(self._pm, hook, plugin, others, arguments)

    def _load(self, name: str) -> None:
        if name in self._families or name in self._errors:
            return
        claims = self._entries[name]
        if len(claims) > 1:
            self._errors[name] = (
                f"{len(claims)} distributions claim this name: {', '.join(distribution_of(e) for e in claims)}"
            )
            return
        try:
            adapter = claims[0].load()
            family = self.register(adapter, name=f"adapter {name} of {distribution_of(claims[0])}")
            if family is not None and family.name != name:
                self.unregister(adapter)
                raise AdapterError(f"The entry point {name} describes a family named {family.name}")
            if family is None:
                self.unregister(adapter)
                raise AdapterError(
                    f"{claims[0].value} has no describe_family hook",
                    fix=f"Register a policy under the entry-point group {POLICY_ENTRY_POINT_GROUP}.",
                )
        except Exception:  # a plugin may raise anything; it is kept and shown to whoever needs this family
            self._errors[name] = traceback.format_exc()

    def _answers(self, plugin: object) -> list[str]:
        return [
            caller.name
            for caller in self._pm.get_hookcallers(plugin) or ()
            for impl in caller.get_hookimpls()
            if impl.plugin is plugin and not impl.wrapper and not impl.hookwrapper
        ]

    def _load_policies(self) -> dict[str, str]:
        if self._policy_errors is None:
            self._policy_errors = {}
            for name, claims in self._policies.items():
                for entry in claims:
                    try:
                        policy = entry.load()
                        if self.register(policy, name=f"policy {name} of {distribution_of(entry)}"):
                            self.unregister(policy)
                            raise AdapterError(
                                f"{entry.value} describes a family",
                                fix=f"Register an adapter under the entry-point group {ENTRY_POINT_GROUP}.",
                            )
                    except Exception:  # a plugin may raise anything
                        self._policy_errors[name] = traceback.format_exc()
        return self._policy_errors

    def _require_policies(self) -> None:
        for name, error in self._load_policies().items():
            claims = " and ".join(distribution_of(entry) for entry in self._policies[name])
            raise AdapterError(
                f"The policy {name} of {claims} cannot be used:\n{error}",
                why="Without it this run could do what the policy forbids.",
                fix=f"Mend or uninstall it; {DISABLE_VARIABLE}=1 leaves all third-party plugins out.",
            )


@lru_cache(maxsize=1)
def get_manager() -> AdapterManager:
    """Return the process's manager, made on first use."""
    return AdapterManager()
