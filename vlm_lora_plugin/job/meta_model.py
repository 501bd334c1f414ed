"""A model folder's model without weights, built when it is first needed. Importing this imports no torch."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lora_plugin.loading import check_variant
from vlm_lora_plugin.plugins.manager import get_manager

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vlm_lora_plugin.contract import Architecture, Family
    from vlm_lora_plugin.planning.dtypes import DtypeName


class MetaModel:
    """The model of a folder on the meta device; ``config.json`` alone is enough.

    Args:
        folder: The model folder.
        dtype: Parameter dtype, or None for the one the config names.
        variant: One of ``Family.variants``, where neither the config nor weights say which one it is.
    """

    def __init__(self, folder: Path, dtype: DtypeName | None = None, variant: str | None = None) -> None:
        self._folder, self._dtype, self._variant = folder, dtype, variant

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, built once in this process, to be looked at and not changed.

        Raises:
            AdapterError: A function of the family plugin raised something unexpected.
            ModelError: The config is impossible, or its family has no such variant.
        """
        from vlm_lora_plugin.planning.dtypes import DTYPES

        manager = get_manager()
        family = manager.family_of_folder(self._folder)
        check_variant(family, self._variant)
        dtype = DTYPES[self._dtype] if self._dtype else None
        return manager.outline(family, self._folder, self._variant, dtype=dtype)

    def architecture(self, family: Family) -> Architecture:
        """Return what it is made of, as its family says."""
        return get_manager().architecture(family, self.model)
