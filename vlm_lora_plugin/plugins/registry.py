"""Which adapters and policies there are: found, imported when they are needed, and isolated when they are broken.

Discovery never lets one adapter take down another: an entry point that fails to import is recorded with its
traceback and stops only the run that needs it. A broken policy stops every run, because a rule that is
silently not applied is worse than none. Order is by name. Nothing is imported before it is needed.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

from vlm_lora_plugin.contract import Family, TrainableSelection
from vlm_lora_plugin.contract.hookspecs import PROJECT_NAME, AdapterSpecs, hookimpl
from vlm_lora_plugin.errors import AdapterError, listed, nearest
from vlm_lora_plugin.plugins.answers import JSON, problem_of
from vlm_lora_plugin.plugins.calling import ask
from vlm_lora_plugin.plugins.discovery import (
    DISABLE_VARIABLE,
    ENTRY_POINT_GROUP,
    POLICY_ENTRY_POINT_GROUP,
    distribution_of,
    installed_entries,
    is_own,
)
from vlm_lora_plugin.plugins.isolation import PluginExit, guarded, represented, told, within_time
from vlm_lora_plugin.plugins.records import AdapterRecord
from vlm_lora_plugin.plugins.references import check_functions

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from vlm_lora_plugin.contract import Patch
    from vlm_lora_plugin.recipe import Recipe


_FIX = "See docs/reference/hooks.md for the fields of Family."

after_loading: list[Callable[[], None]] = []
"""Called whenever an adapter has been loaded and no other one is being loaded around it."""


def _check_description(family: Family, who: str) -> None:
    """Refuse a description with a field of another type than the contract names, however deep it lies."""
    problem = problem_of(family, Family) or problem_of(family.presets, JSON, "presets")
    if problem is None and not family.name:
        problem = "name is empty"
    if problem is None and family.default_preset not in (family.presets or [""]):
        problem = f"default_preset is '{family.default_preset}', which is none of its presets"
    if problem is not None:
        raise AdapterError(f"The description that {who} gives does not fit: {problem}", fix=_FIX)


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


class AdapterRegistry:
    """Adapters and policies: installed ones, and those that are added by hand.

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
        self._loading: set[str] = set()
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
        label = name or represented(adapter)
        if isinstance(adapter, type):
            raise AdapterError(f"{label} is a class; an instance or a module is needed", fix="Add the brackets ().")
        if self._pm.is_registered(adapter):
            raise AdapterError(f"{label} is registered already", fix="Register it once.")
        try:
            guarded(lambda: self._pm.register(adapter, name=name))
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
            check_functions(family, label)
            _check_description(family, label)
            if family.name in self._plugins:
                raise AdapterError(f"Two adapters claim the family {family.name}", fix="Unregister one of them.")
        except BaseException as error:
            if self._pm.is_registered(adapter):
                self._pm.unregister(adapter)
            if isinstance(error, (ValueError, PluginExit, pluggy.PluginValidationError)):
                raise AdapterError(f"{label} is not a valid adapter: {told(error)}") from error
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
                fix=f"Repair or uninstall it; {DISABLE_VARIABLE}=1 leaves all third-party adapters out.",
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

    @property
    def is_loading(self) -> bool:
        """Whether an adapter is being loaded at this moment, further up the stack."""
        return bool(self._loading)

    def _load(self, name: str) -> None:
        if name in self._families or name in self._errors or name in self._loading:
            return
        claims = self._entries[name]
        if len(claims) > 1:
            self._errors[name] = (
                f"{len(claims)} distributions claim this name: {', '.join(distribution_of(e) for e in claims)}"
            )
            return
        self._loading.add(name)
        try:
            title = f"adapter {name} of {distribution_of(claims[0])}"
            adapter, family = self._imported(claims[0], title)
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
        finally:
            self._loading.remove(name)
            if not self._loading:
                for call in after_loading:
                    call()

    def _imported(self, entry: EntryPoint, title: str) -> tuple[object, Family | None]:
        """Import an entry point and register what it points to, within the time that a plugin has."""

        def load() -> tuple[object, Family | None]:
            plugin: object = guarded(entry.load)
            return plugin, self.register(plugin, name=title)

        return within_time(load, f"The {title}", limited=not is_own(entry))

    def _ask(self, plugin: object, hook: str, **arguments: Any) -> Any:
        self._load_policies()
        others = [other for other in self._plugins.values() if other is not plugin]
        return ask(self._pm, hook, plugin, others, arguments)

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
                        policy, family = self._imported(entry, f"policy {name} of {distribution_of(entry)}")
                        if family is not None:
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
                fix=f"Repair or uninstall it; {DISABLE_VARIABLE}=1 leaves all third-party plugins out.",
            )
