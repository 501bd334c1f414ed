"""Swift's trainer, bent to the Trainer of transformers: its loss, batches, order, optimizer and schedule.

Swift keeps what is Swift's: the folders, ``args.json``, the progress bar and the log file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from swift.trainers import Seq2SeqTrainer
from swift.trainers.patcher import DefaultFlowCallbackNew
from transformers import DefaultFlowCallback, Trainer, TrainerCallback

from vlm_lora_plugin.frameworks.swift.job import SwiftJob
from vlm_lora_plugin.frameworks.trainer import VlmLoraCallback

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader


class VlmLoraSwiftTrainer(Seq2SeqTrainer):  # type: ignore[misc]  # Swift is untyped
    """What ``swift sft --tuner_type vlm_lora`` trains with.

    Each method below that only names ``Trainer`` undoes an override of Swift's that would change the result.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Swift's flow evaluates once more after the last step.
        self.remove_callback(DefaultFlowCallbackNew)
        self.callback_handler.callbacks.insert(0, DefaultFlowCallback())
        self.processing_class = None  # with a tokenizer, transformers changes the model's config when training begins

    def _get_data_collator(self, args: Any, template: Any) -> Callable[..., Any]:
        collate: Callable[..., Any] = template.inner.collate
        return collate

    def _get_callbacks(self, args: Any) -> list[TrainerCallback]:
        own_folder = SwiftJob.of_process() is None  # else it begins in a temporary one, and the job has checked its own
        return [VlmLoraCallback(check_room=own_folder), *super()._get_callbacks(args)]

    def _fix_gradient_checkpointing(self) -> None:
        """Leave ``torch.utils.checkpoint`` alone; the recipe's patches checkpoint."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does: no hooks on the model, no forward of a frozen tower replaced."""
        with self.hub.patch_hub():
            return Trainer.train(self, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See the Trainer."""
        return Trainer.training_step(self, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Count each row once; Seq2SeqTrainer also counts those that fill up the last batch of several processes."""
        return Trainer.evaluate(self, *args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """See the Trainer."""
        return Trainer.prediction_step(self, *args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Give ``num_items_in_batch`` to the model, as the Trainer does."""
        return Trainer.compute_loss(self, *args, **kwargs)

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        return Trainer._prepare_inputs(self, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Deal rows to processes as the Trainer does."""
        return Trainer.get_train_dataloader(self)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        """See the Trainer."""
        return Trainer.get_eval_dataloader(self, *args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the recipe's groups."""
        return Trainer.create_optimizer(self, *args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """See the Trainer."""
        return Trainer.create_scheduler(self, *args, **kwargs)

    def create_optimizer_and_scheduler(self, *args: Any, **kwargs: Any) -> None:
        """See the Trainer."""
        Trainer.create_optimizer_and_scheduler(self, *args, **kwargs)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """See the Trainer."""
        Trainer.log(self, *args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        Trainer._maybe_log_save_evaluate(self, *args, **kwargs)
