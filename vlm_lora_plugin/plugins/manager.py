"""The one place that knows which adapter a folder or a model belongs to, and asks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.contract import Family, TrainableSelection
from vlm_lora_plugin.errors import ModelError, listed, nearest
from vlm_lora_plugin.plugins.calling import attributed, title
from vlm_lora_plugin.plugins.registry import AdapterRegistry

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from vlm_lora_plugin.contract import LoadRequest, Patch, Processor
    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.vocabulary import Hardware


class AdapterManager(AdapterRegistry):
    """Recognises whose a folder or a model is, and asks that adapter and every policy around it."""

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

    def load(self, family: Family, request: LoadRequest) -> tuple[PreTrainedModel, Processor | None]:
        """Let a family's loader read a model folder.

        Raises:
            AdapterError: It raised something unexpected; names the adapter and its distribution. A VlmLoraError
                is an answer to the user and passes as it is.
        """
        return attributed(lambda: family.load(request), f"The loader of {self.title(family)}")

    def title(self, family: Family) -> str:
        """Return a family's adapter as messages call it: ``the adapter monkey of vlm-lora-plugin 0.1.0``."""
        return title(self._pm, self._plugins[family.name])

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


@lru_cache(maxsize=1)
def get_manager() -> AdapterManager:
    """Return the process's manager, made on first use."""
    return AdapterManager()
