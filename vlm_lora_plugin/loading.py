"""The front door: from a model folder to a model and its processor, without remote code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lora_plugin.manager import get_manager
from vlm_lora_plugin.types import LoadRequest, Processor

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    seed: int = 42,
) -> tuple[PreTrainedModel, Processor]:
    """Load a model folder of a known family, by its content and without running code from it.

    Args:
        folder: A downloaded model folder (``config.json``, weights, tokenizer files).
        dtype: Parameter dtype, or None for the one the config names.
        device: ``"cpu"``, ``"cuda"``..., or ``"meta"`` for a model without weights.
        seed: Seed of the initialisation of LoRA that the checkpoint lacks.

    Returns:
        The model in eval mode, and its processor.

    Raises:
        ModelError: The folder is of no known family.
        WeightsError: Tensors are missing, extra or of another shape.
    """
    path = Path(folder)
    family = get_manager().family_of_folder(path)
    return family.load(LoadRequest(folder=path, dtype=dtype, device=device, seed=seed))
