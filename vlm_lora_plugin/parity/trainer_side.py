"""``python -m vlm_lora_plugin.parity.trainer_side TASK.json``: an unmodified Trainer, through the public API alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from vlm_lora_plugin import ConversationDataset, VlmLoraCallback, load, prepare, training_arguments
from vlm_lora_plugin.frameworks.recorder import Recorder
from vlm_lora_plugin.job.train_job import recognise
from vlm_lora_plugin.parallel.parent_death import die_with_launchers
from vlm_lora_plugin.parity.parity_job import Side, TrainerTask


def main(file: str) -> None:
    """Train as the task says."""
    die_with_launchers()
    task = TrainerTask.read(Path(file))
    side = Side("trainer", Path(task.folder))
    dtype = getattr(torch, task.dtype)
    _, recipe = recognise(Path(task.model), task.recipe, {})
    options: dict[str, Any] = {"disable_tqdm": True, **({"ddp_backend": "gloo"} if task.gloo else {})}
    arguments = training_arguments(recipe, side.checkpoints, dtype=dtype, evaluate=task.val_data is not None, **options)
    base, processor = load(task.model, recipe, dtype=dtype, seed=recipe.seed)
    model = prepare(base, recipe)
    family = model.vlm_lora.family
    files = [task.data] if task.val_data is None else [task.data, task.val_data]
    sets = [ConversationDataset(file, processor, recipe.data, family, seed=recipe.seed) for file in files]
    for data in sets:
        data.check(decode=True)  # leaves out what the recipe wants left out
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=sets[0],
        eval_dataset=sets[1] if len(sets) > 1 else None,
        data_collator=processor.collate,
        callbacks=[VlmLoraCallback(recipe), Recorder(side.records)],
    )
    trainer.train(resume_from_checkpoint=task.resume)


if __name__ == "__main__":
    main(sys.argv[1])
