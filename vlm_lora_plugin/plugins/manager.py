"""The one place that knows which adapter a folder or a model belongs to, and asks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from vlm_lora_plugin.contract import Architecture, Family, LoadRequest, TrainableSelection
from vlm_lora_plugin.errors import AdapterError, ModelError, RecipeError, VlmLoraError, listed, nearest
from vlm_lora_plugin.outside.files import odd_entry, reason
from vlm_lora_plugin.outside.json_text import read_json
from vlm_lora_plugin.plugins.architectures import check_architecture
from vlm_lora_plugin.plugins.calling import title
from vlm_lora_plugin.plugins.outlines import Key, Outlines, key_of
from vlm_lora_plugin.plugins.references import PluginFunction
from vlm_lora_plugin.plugins.registry import AdapterRegistry

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from vlm_lora_plugin.contract import Patch, Processor
    from vlm_lora_plugin.recipe import Recipe
    from vlm_lora_plugin.vocabulary import Hardware

P = ParamSpec("P")
R = TypeVar("R")


class AdapterManager(AdapterRegistry):
    """Recognises whose a folder or a model is, and asks that adapter and every policy around it."""

    def __init__(self, *, discover: bool = True) -> None:
        super().__init__(discover=discover)
        self._architectures: dict[Key, Architecture] = {}
        self._outlines = Outlines()

    def unregister(self, adapter: object) -> None:
        """Remove an adapter or policy that was registered, and forget what it said."""
        super().unregister(adapter)
        for name in {key[0] for key in self._architectures} - self._families.keys():
            self._outlines.forget(name)
        kept = {key: value for key, value in self._architectures.items() if key[0] in self._families}
        self._architectures = kept

    def family_of_folder(self, folder: Path) -> Family:
        """Return the family that recognises a model folder by its content; a fallback where no other one does.

        Raises:
            ModelError: No family, or more than one that is not a fallback, recognises it; or several fallbacks; or a
                pipe, socket or device stands in it, at which a library would wait.
        """
        if not folder.is_dir():
            raise ModelError(f"There is no model folder {folder}", fix="Give the path of a downloaded model.")
        if not (folder / "config.json").is_file():
            adapter = (folder / "adapter_config.json").is_file()
            raise ModelError(
                f"{folder} is {'an adapter' if adapter else 'not a model folder'}: it has no config.json",
                fix="Give the base model's folder here; load_adapter(base, adapter) puts the adapter on it."
                if adapter
                else "Give the folder that holds config.json.",
            )
        odd = odd_entry(folder)
        if odd is not None:
            raise ModelError(
                f"{odd[0]} in the model folder cannot be read: {odd[1]}", fix="Use an unchanged copy of the model."
            )
        _check_config(folder)
        matches: list[Family] = []
        failed: list[str] = []
        for fallbacks in (False, True):
            for family in self.families().values():
                if family.fallback == fallbacks:
                    try:
                        if self.function(family, family.recognises)(folder):
                            matches.append(family)
                    except VlmLoraError as error:  # somebody else's adapter must not stop this one's
                        failed.append(f"{family.name} ({error.what})")
            if matches:
                break
        if len(matches) == 1:
            return matches[0]
        broken = [record.name for record in self.records() if record.error] + failed
        hint = f"These adapters are broken and could not be asked: {', '.join(broken)}." if broken else ""
        if matches:
            raise ModelError(
                f"{folder} is recognised by {self._all_of(matches)}; it must be one",
                why="Which of them loads the model decides what is trained.",
                fix="Uninstall all but one of these.",
            )
        raise ModelError(
            f"{folder} holds none of the known models ({', '.join(f.title for f in self.families().values())})",
            why=hint,
            fix="Look at model_type and architectures in its config.json: it must be one of the families above.",
        )

    def family_of_model(self, model: nn.Module) -> Family:
        """Return the family that owns a model object, by its config's ``model_type``; a fallback where no other does.

        Raises:
            ModelError: No family, or more than one that is not a fallback, owns it; or several fallbacks.
        """
        model_type = getattr(getattr(model, "config", None), "model_type", None)
        for fallbacks in (False, True):
            owners = [
                family
                for family in self.families().values()
                if family.fallback == fallbacks and model_type in family.model_types
            ]
            if len(owners) > 1:
                raise ModelError(
                    f"The model type {model_type!r} is claimed by {self._all_of(owners)}; it must be one",
                    why="Which of them prepares the model decides what is trained.",
                    fix="Uninstall all but one of these.",
                )
            if owners:
                return owners[0]
        known = [kind for family in self.families().values() for kind in family.model_types]
        raise ModelError(
            f"No adapter owns a {type(model).__name__} of model type {model_type!r}",
            fix=f"Load the model with vlm_lora_plugin.load(folder). {nearest(str(model_type), known)}",
        )

    def _all_of(self, families: Sequence[Family]) -> str:
        return listed(self.title(family) for family in families)

    def load_model(self, family: Family, request: LoadRequest) -> PreTrainedModel:
        """Let a family build the model of a folder.

        Raises:
            AdapterError: Its function raised something unexpected; names it, the plugin and its distribution. A
                VlmLoraError is an answer to the user and passes as it is.
        """
        model = self.function(family, family.load_model)(request)
        missing = _lacking(model, "named_parameters", "named_modules", "forward")  # torch is not imported here
        if missing:
            raise self._wrong_answer(family, "load_model", model, "a model", missing)
        if not isinstance(getattr(getattr(model, "config", None), "model_type", None), str):
            raise self._wrong_answer(family, "load_model", model, "a model with a config that has a model_type")
        return model

    def load_processor(self, family: Family, request: LoadRequest) -> Processor:
        """Let a family build the processor of a folder.

        Raises:
            AdapterError: As in :meth:`load_model`.
            RecipeError: ``data.exif_transpose`` is asked for, and the processor does not know it.
        """
        processor = self.function(family, family.load_processor)(request)
        missing = _lacking(processor, "encode", "encode_prompt", "count_tokens", "collate", "save_pretrained")
        if missing:
            raise self._wrong_answer(family, "load_processor", processor, "a processor", missing)
        if request.exif_transpose:
            if not hasattr(processor, "exif_transpose"):
                raise RecipeError(
                    f"data.exif_transpose is true, and the processor of {self.title(family)} does not know it",
                    why="Images would be seen as they are stored.",
                    fix="Leave it out, or turn the image files themselves.",
                )
            processor.exif_transpose = True
        return processor

    def _wrong_answer(
        self, family: Family, name: str, answer: object, wanted: str, missing: Sequence[str] = ()
    ) -> AdapterError:
        lacks = f": it has no function {', '.join(missing)}" if missing else ""
        return AdapterError(
            f"{name} of {self.title(family)} returned a {type(answer).__name__}, not {wanted}{lacks}",
            fix="See docs/reference/hooks.md for what each function of Family returns.",
        )

    def architecture(self, family: Family, model: nn.Module) -> Architecture:
        """Ask a family what a model is made of, loaded or on the meta device, and check the answer against the model.

        Raises:
            AdapterError: The function raised something unexpected, or its answer does not describe the model.
        """
        answer: object = self.function(family, family.architecture)(cast("PreTrainedModel", model))
        return check_architecture(answer, model, self.title(family))

    def architecture_of_folder(self, family: Family, folder: Path, variant: str | None = None) -> Architecture:
        """Return what the model of a folder is made of, before any is loaded.

        The family builds it on the meta device, once for each config and variant in this process.

        Args:
            family: Whose folder it is.
            folder: The model folder; ``config.json`` alone is enough.
            variant: One of ``Family.variants``, where neither the config nor weights say which one it is.

        Raises:
            AdapterError: The family's functions raised something unexpected, or the answer is wrong.
            ModelError: The config is impossible.
            TrainingError: As in :meth:`outline`.
        """
        key = key_of(family.name, folder, variant)
        if key not in self._architectures:
            outline = self._outlines.get(key, partial(self._build_outline, family, folder, variant))
            self._architectures[key] = self.architecture(family, outline)
        return self._architectures[key]

    def outline(
        self, family: Family, folder: Path, variant: str | None = None, *, dtype: torch.dtype | None = None
    ) -> PreTrainedModel:
        """Return the model of a folder on the meta device, to be looked at and not changed.

        The family builds it once for each config and variant in this process; of several, the newest is kept.

        Args:
            family: Whose folder it is.
            folder: The model folder; ``config.json`` alone is enough.
            variant: One of ``Family.variants``, where neither the config nor weights say which one it is.
            dtype: Parameter dtype until somebody asks for another one; None for the one that the config names.

        Raises:
            AdapterError: The family's function raised something unexpected.
            ModelError: The config is impossible.
            TrainingError: It is not built yet, and this process belongs to a process group already.
        """
        key = key_of(family.name, folder, variant)
        return self._outlines.in_dtype(key, partial(self._build_outline, family, folder, variant), dtype)

    def _build_outline(self, family: Family, folder: Path, variant: str | None) -> PreTrainedModel:
        return self.load_model(family, LoadRequest(folder=folder, device="meta", variant=variant))

    def function(self, family: Family, function: Callable[P, R] | str) -> PluginFunction[P, R]:
        """Return one of the functions of a family's description, ready to be called and to name whose fault it is."""
        groups = (family, family.data_formats, family.test_support)
        names = (field.name for group in groups for field in fields(group) if getattr(group, field.name) is function)
        name = next(names, "")
        return PluginFunction(function, f"{name or 'A function'} of {self.title(family)}", name)

    def title(self, family: Family) -> str:
        """Return a family's plugin as messages call it: ``the adapter monkey of vlm-lora-plugin 0.1.0``."""
        plugin = self._plugins.get(family.name)
        return f"the family {family.name}" if plugin is None else title(self._pm, plugin)

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


def _check_config(folder: Path) -> None:
    """Refuse a folder whose config is not a JSON object: no family could say more about it.

    Raises:
        ModelError: Names the file and the place in it.
    """
    file = folder / "config.json"
    try:
        document = read_json(file)
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {reason(error)}", fix="Download it again.") from None
    if not isinstance(document, dict):
        raise ModelError(f"{file} holds no JSON object", fix="Download it again.")


def _lacking(answer: object, *names: str) -> list[str]:
    return [name for name in names if not callable(getattr(answer, name, None))]


@lru_cache(maxsize=1)
def get_manager() -> AdapterManager:
    """Return the process's manager, made on first use."""
    return AdapterManager()
