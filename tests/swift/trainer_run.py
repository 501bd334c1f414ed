"""The unmodified Trainer on a bench's model and data: ``trainer_run.py '{"folder": ..., "recipe": ...}' OUTPUT``."""

import json
import sys
from pathlib import Path

import torch
from transformers import Trainer

from vlm_lora_plugin import ConversationDataset, VlmLoraCallback, load, prepare, training_arguments


def main() -> None:
    options = json.loads(sys.argv[1])
    folder = Path(options["folder"])
    base, processor = load(folder / "model", dtype=getattr(torch, options.get("dtype", "float32")))
    model = prepare(base, options["recipe"])
    sets = {
        name: ConversationDataset(
            folder / f"{name}.jsonl", processor, model.vlm_lora.recipe.data, model.vlm_lora.family
        )
        for name in ("train", "val")
    }
    evaluate = options.get("evaluate", False)
    trainer = Trainer(
        model=model,
        args=training_arguments(model, sys.argv[2], evaluate=evaluate, disable_tqdm=True),
        train_dataset=sets["train"],
        eval_dataset=sets["val"] if evaluate else None,
        data_collator=processor.collate,
        callbacks=[VlmLoraCallback()],
    )
    trainer.train(resume_from_checkpoint=options.get("resume"))


if __name__ == "__main__":
    main()
