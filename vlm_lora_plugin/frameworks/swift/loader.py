"""Loading a family's model and processor for Swift, without code from the model folder.

Swift's own loader always allows remote code, for the config, the tokenizer and the model. This one is no
subclass of it: everything goes through the family's ``load_model`` and ``load_processor``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift.model.model_meta import BaseModelLoader

from vlm_lora_plugin.contract import LoadRequest, Processor
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.frameworks.swift.families import family_of_type
from vlm_lora_plugin.frameworks.swift.recipe import run_recipe
from vlm_lora_plugin.plugins.manager import get_manager

if TYPE_CHECKING:
    from swift.model import ModelInfo, ModelMeta
    from transformers import PreTrainedModel


class SwiftProcessor:
    """An adapter's processor with what Swift expects a processor to carry.

    Attributes:
        inner: The adapter's processor.
        model_info: Swift's record of the model.
        model_meta: Swift's record of the model type.
    """

    def __init__(self, inner: Processor, model_info: ModelInfo, model_meta: ModelMeta) -> None:
        self.inner, self.model_info, self.model_meta = inner, model_info, model_meta

    @property
    def tokenizer(self) -> Any:
        """The adapter's tokenizer."""
        return self.inner.tokenizer

    def save_pretrained(self, folder: str | Path, *_: Any, **__: Any) -> None:
        """Write what is needed to load the processor again."""
        self.inner.save_pretrained(folder)


class VlmLoraLoader(BaseModelLoader):  # type: ignore[misc]  # Swift is untyped
    """Swift's loader of every family.

    Args:
        model_info: What Swift knows of the folder.
        model_meta: The registered model type.
        load_model: Whether weights are wanted; without, the model stays on the meta device and is not returned.
        model_kwargs: Of these, only ``device_map`` with a single device has a meaning here.
        options: Swift's further options; each must be at its default.
    """

    def __init__(
        self,
        model_info: ModelInfo,
        model_meta: ModelMeta,
        *,
        load_model: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        return_dummy_model: bool = False,
        **options: Any,
    ) -> None:
        self.model_info, self.model_meta = model_info, model_meta
        self._on_meta = return_dummy_model or not load_model
        self._wanted = load_model
        self._device = _single_device((model_kwargs or {}).get("device_map"))
        given = {name: value for name, value in options.items() if value not in (None, False, [], {})}
        if (model_kwargs or {}).get("quantization_config") is not None:
            given["quantization_config"] = model_kwargs
        if given:
            raise ModelError(
                f"Swift's options {', '.join(sorted(given))} mean nothing to {model_meta.model_type}",
                why="The family's own code loads the model; the options would be ignored.",
                fix="Leave them out.",
            )

    def load(self) -> tuple[PreTrainedModel | None, SwiftProcessor]:
        """Return the model in evaluation mode, or None when it was not asked for, and its processor.

        Raises:
            AdapterError: A function of the family plugin raised something unexpected, or answered something else.
            ModelError: The folder is not of this family.
            WeightsError: Tensors are missing, extra or of another shape.
        """
        manager = get_manager()
        family = family_of_type(self.model_info.model_type)
        folder = Path(self.model_info.model_dir)
        device = "meta" if self._on_meta else self._device
        request = LoadRequest(folder=folder, dtype=self.model_info.torch_dtype, device=device)
        recipe = run_recipe(family, folder)
        if recipe is not None:
            request = replace(
                request, seed=recipe.seed, processor=recipe.data.processor, exif_transpose=recipe.data.exif_transpose
            )
        processor, model = manager.load_processor(family, request), manager.load_model(family, request)
        self.model_info.config = model.config
        vars(model).update(model_info=self.model_info, model_meta=self.model_meta, model_dir=str(folder))
        return model if self._wanted else None, SwiftProcessor(processor, self.model_info, self.model_meta)


def _single_device(device_map: object) -> str:
    if device_map is None:
        return "cpu"
    if isinstance(device_map, str) and device_map not in ("auto", "balanced", "sequential", "balanced_low_0"):
        return device_map
    raise ModelError(
        f"device_map {device_map!r} spreads the model over several devices",
        why="The family's own code loads the model onto one.",
        fix="Start one process for each device: NPROC_PER_NODE=<devices>.",
    )
