"""The families' classes in transformers' auto classes: ``AutoModelForCausalLM``, ``AutoConfig``.

``import vlm_lora_plugin`` has this done as soon as the auto classes are imported
(:mod:`vlm_lora_plugin.models.auto_finder`); :func:`register_auto_classes` does it now and raises what is wrong.
"""

from __future__ import annotations

import warnings
from functools import partial
from importlib import import_module

from vlm_lora_plugin.contract import Family
from vlm_lora_plugin.errors import AdapterError
from vlm_lora_plugin.plugins.isolation import guarded
from vlm_lora_plugin.plugins.manager import get_manager

AUTO_CLASSES = "transformers.models.auto.modeling_auto"


def register_auto_classes() -> tuple[str, ...]:
    """Make ``AutoModelForCausalLM`` and ``AutoConfig`` know the classes of every family, now.

    Needed only where the implicit way is out of reach: an import system that leaves ``sys.meta_path`` out, or a
    program that must know that it worked. A second call changes nothing.

    Returns:
        Names of the families that have classes there.

    Raises:
        AdapterError: The model code of a family cannot be imported; names the family and the module.
    """
    import_module(AUTO_CLASSES)
    families = [family for family in get_manager().families().values() if family.auto_modules]
    for family in families:
        for module, error in failing_modules(family):
            raise AdapterError(
                f"{get_manager().title(family)} cannot register its classes: importing {module} raised "
                f"{type(error).__name__}: {error}",
                fix="Repair or uninstall it.",
            ) from error
    return tuple(family.name for family in families)


def import_auto_modules() -> None:
    """Import every family's ``auto_modules``, which register their classes.

    One that fails is left out with a warning: this runs inside somebody's import of transformers.
    """
    for family in get_manager().families().values():
        for _, error in failing_modules(family):
            warnings.warn(f"AutoModelForCausalLM cannot load {family.title}: {error!r}", stacklevel=2)


def failing_modules(family: Family) -> list[tuple[str, Exception]]:
    """Import a family's ``auto_modules`` and return those that fail, with what they raised."""
    failed: list[tuple[str, Exception]] = []
    for name in family.auto_modules:
        try:
            guarded(partial(import_module, name))
        except Exception as error:  # model code of others may raise anything
            failed.append((name, error))
    return failed
