"""Whether a Trainer makes batches as the model's processor does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.data import ConcatDataset, Subset
from transformers import DataCollatorWithPadding, DefaultDataCollator, default_data_collator

from vlm_lora_plugin.data.dataset import ConversationDataset
from vlm_lora_plugin.errors import TrainingError

if TYPE_CHECKING:
    from transformers import Trainer


def check_collator(trainer: Trainer) -> None:
    """Refuse the collator that a Trainer takes where none was given, for rows that only the processor can batch.

    Raises:
        TrainingError: It was forgotten.
    """
    collator = trainer.data_collator
    general = collator is default_data_collator or type(collator) in (DataCollatorWithPadding, DefaultDataCollator)
    if not general or not _is_of_conversations(trainer.train_dataset):
        return
    raise TrainingError(
        f"The Trainer batches conversations with {getattr(collator, '__name__', type(collator).__name__)}",
        why="It knows neither how rows of different length are padded nor where images belong.",
        fix="Give it the processor's: Trainer(..., data_collator=processor.collate).",
    )


def _is_of_conversations(data: Any) -> bool:
    if isinstance(data, Subset):
        return _is_of_conversations(data.dataset)
    if isinstance(data, ConcatDataset):
        return any(map(_is_of_conversations, data.datasets))
    return isinstance(data, ConversationDataset)
