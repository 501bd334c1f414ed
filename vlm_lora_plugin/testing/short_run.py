"""A few real steps of an unmodified Trainer, as the promises of saving, resuming and merging need them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, Trainer

from vlm_lora_plugin.data.dataset import ConversationDataset
from vlm_lora_plugin.frameworks.trainer import VlmLoraCallback, training_arguments

if TYPE_CHECKING:
    from vlm_lora_plugin.prepared.model import VlmLoraPeftModel
    from vlm_lora_plugin.testing.subject import Subject

STEPS, SAVED = 4, 2
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "save_steps": SAVED,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
}
LOGGED = ("step", "loss", "grad_norm", "learning_rate")


@dataclass(frozen=True)
class ShortRun:
    """What a run leaves.

    Attributes:
        output: The folder of its checkpoints.
        model: The trained model, in memory.
    """

    output: Path
    model: VlmLoraPeftModel

    @classmethod
    def train(cls, subject: Subject, output: Path, *, resume: bool = False) -> ShortRun:
        """Train the default preset for four steps, or what is left of them."""
        model = subject.prepared(training=SETTINGS)
        recipe = model.vlm_lora.recipe
        data = ConversationDataset(subject.data.train, subject.processor, recipe.data, subject.family, seed=recipe.seed)
        trainer = Trainer(
            model=model,
            args=training_arguments(model, output, disable_tqdm=True, use_cpu=True),
            train_dataset=data,
            data_collator=subject.processor.collate,
            callbacks=[VlmLoraCallback(recipe)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=resume or None)
        return cls(output, model)

    @property
    def adapter(self) -> Path:
        """The last checkpoint."""
        return self.output / f"checkpoint-{STEPS}"

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what was trained, by canonical name."""
        return {name: tensor.detach() for name, tensor in self.model.named_trainables().items()}

    def logged(self) -> list[dict[str, float]]:
        """Return what was logged after each step, in full precision."""
        history = json.loads((self.adapter / "trainer_state.json").read_text("utf-8"))["log_history"]
        return [{key: entry[key] for key in LOGGED if key in entry} for entry in history if "loss" in entry]
