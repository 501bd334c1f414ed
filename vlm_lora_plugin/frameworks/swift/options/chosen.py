"""Whether an option of Swift's that describes a selection describes the recipe's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vlm_lora_plugin.frameworks.trainer.groups import ANY
from vlm_lora_plugin.patterns import Matcher
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.selection.resolve import resolve_selection

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.selection.trainables import Trainable, TrainableSet
    from vlm_lora_plugin.vocabulary import ComponentName

ALL_LINEAR = "all-linear"
_PARTS: Mapping[str, ComponentName] = {"freeze_llm": "language", "freeze_vit": "vision", "freeze_aligner": "aligner"}
_RATES: Mapping[str, ComponentName] = {"vit_lr": "vision", "aligner_lr": "aligner"}


@dataclass(frozen=True)
class Outline:
    """A model without weights and what a recipe trains in it."""

    family: Family
    recipe: Recipe
    linear: tuple[str, ...]
    parameters: tuple[str, ...]
    trained: TrainableSet
    attention: str

    @classmethod
    def of(cls, folder: Path, family: Family, recipe: Recipe) -> Outline:
        """Build it from a model folder's config.

        Raises:
            SelectionError: The recipe does not fit the model.
        """
        model = get_manager().outline(family, folder)
        return cls(
            family=family,
            recipe=recipe,
            linear=tuple(name for name, module in model.named_modules() if isinstance(module, nn.Linear)),
            parameters=tuple(name for name, _ in model.named_parameters()),
            trained=resolve_selection(model, family, recipe),
            attention=str(model.config._attn_implementation),
        )

    def disagreement(self, option: str, value: Any, frozen: Mapping[str, bool]) -> str | None:
        """Return what the recipe does instead of what an option says, or None where they agree.

        Args:
            option: The option's name.
            value: Its value.
            frozen: Values of ``freeze_llm``, ``freeze_vit`` and ``freeze_aligner``, on which ``all-linear`` depends.
        """
        if option in _PARTS:
            return self._frozen(_PARTS[option], value)
        if option in _RATES:
            rates = sorted({entry.learning_rate for entry in self._trained(_RATES[option])})
            return None if rates == [value] else f"there the rates are {rates or 'none, all is frozen'}"
        if option == "learning_rate":
            rates = sorted({entry.learning_rate for entry in self.trained.parameters})
            agrees = value == self.recipe.optimizer.rate(*ANY) or rates == [value]
            return None if agrees else f"the rates are {self.recipe.optimizer.learning_rate}"
        if option == "modules_to_save":
            return self._in_full(value)
        return self._targets(option, value, frozen)

    def _trained(self, component: ComponentName) -> list[Trainable]:
        return [entry for entry in self.trained.parameters if entry.component == component]

    def _frozen(self, component: ComponentName, frozen: bool) -> str | None:
        trained = self._trained(component)
        if bool(trained) != frozen:
            return None
        return f"{len(trained)} tensors of {component} learn" if trained else f"{component} is frozen"

    def _in_full(self, suffixes: Iterable[str]) -> str | None:
        wanted = {name for name in self.parameters if any(f".{suffix}." in f".{name}" for suffix in suffixes)}
        trained = {entry.name for entry in self.trained.parameters if entry.means == "full"}
        return None if wanted == trained else f"{len(trained)} parameters of the base are trained in full"

    def _targets(self, option: str, value: Any, frozen: Mapping[str, bool]) -> str | None:
        if option == "target_regex":
            wanted = set(Matcher(value, what="The pattern of --target_regex").among(self.linear))
        elif list(value) == [ALL_LINEAR]:
            wanted = self._all_linear(frozen)
        else:
            wanted = {name for name in self.linear if _ends_with_any(name, value)}
        if wanted == set(self.trained.lora_targets):
            return None
        return f"{len(self.trained.lora_targets)} layers get LoRA there, not {len(wanted)}"

    def _all_linear(self, frozen: Mapping[str, bool]) -> set[str]:
        wanted: set[str] = set()
        for part in sorted(self.trained.architecture.components, key=lambda part: max(map(len, part.prefixes))):
            inside = {name for name in self.linear if any(_is_below(name, prefix) for prefix in part.prefixes)}
            option = next((option for option, name in _PARTS.items() if name == part.name), None)
            wanted = wanted | inside if option is not None and not frozen[option] else wanted - inside
        return wanted


def _is_below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _ends_with_any(name: str, suffixes: Collection[str]) -> bool:
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)
