"""Trains a tiny model on two CPU processes, one way after the other.

    torchrun --nproc-per-node 2 two_ranks.py MODEL OUTPUT

First through ``prepare``, then through the callback alone; the first also answers five rows, split over the
processes, and writes down what each of them has answered and measured. Last the image features are written through
``.data``, which must stop the run, and with it this program.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from job import PRESETS, cut_image_gradient
from rows import examples
from transformers import Trainer

from vlm_lora_plugin import VlmLoraCallback, get_manager, load, prepare, training_arguments
from vlm_lora_plugin.answering.metrics import Metric
from vlm_lora_plugin.errors import TrainingError
from vlm_lora_plugin.frameworks.trainer.answer_metric import AnswerMetric
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.prepared.model import find_prepared

ROWS = "titititi"
"""Half of them with an image, so that often only one rank has one."""

LEARNING = {**PRESETS, "xcomposer": "lora+projector"}
"""Presets by family with which something learns through the images' features."""

RECIPE = {
    "optimizer": {"learning_rate": 1e-3, "warmup_ratio": 0.0},
    "training": {
        "max_steps": 12,
        "save_steps": 6,
        "save_total_limit": 1,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 0,
    },
}


def answer(run, processor, output):
    asked = []

    class Noting:
        tokenizer, collate = processor.tokenizer, processor.collate

        def encode_prompt(self, example):
            asked.append(example.messages[-1].content)
            return processor.encode_prompt(example)

    def note(answers, known):
        seen = {"asked": asked, "known": [e.messages[-1].content for e in known], "answers": answers}
        (output.parent / f"answers-{run.args.process_index}.json").write_text(json.dumps(seen))
        return len(answers)

    metric = AnswerMetric(run, Noting(), examples(ROWS)[:5], Metric("count", note), max_new_tokens=6)
    values = {}
    metric.on_evaluate(run.args, run.state, run.control, metrics=values)
    assert values == {"eval_count": 5.0}


def train(folder, output, way):
    base, processor = load(folder)
    family = get_manager().family_of_folder(folder)
    recipe = resolve_recipe({"preset": LEARNING[family.name], **RECIPE}, family)
    if way == "cut":
        cut_image_gradient()
    run = Trainer(
        model=base if way == "callback" else prepare(base, recipe),
        args=training_arguments(
            recipe, output, disable_tqdm=True, ddp_backend="gloo", ddp_find_unused_parameters=False
        ),
        train_dataset=[processor.encode(example) for example in examples(ROWS)],
        data_collator=processor.collate,
        callbacks=[VlmLoraCallback(recipe)],
    )
    try:
        run.train()
    except TrainingError as error:
        (output.parent / f"error-{run.args.process_index}.txt").write_text(str(error))
        sys.exit(3)
    ours = torch.cat([tensor.detach().flatten() for tensor in find_prepared(run.model).named_trainables().values()])
    both = [torch.empty_like(ours) for _ in range(2)]
    torch.distributed.all_gather(both, ours)
    if not torch.equal(*both):
        sys.exit("the ranks trained different weights")
    if way == "prepare":
        answer(run, processor, output)


if __name__ == "__main__":
    for way in ("prepare", "callback", "cut"):
        train(Path(sys.argv[1]), Path(sys.argv[2]) / way, way)
