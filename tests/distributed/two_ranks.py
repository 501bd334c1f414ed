"""Trains a tiny Monkey on two CPU processes, one way after the other.

    torchrun --nproc-per-node 2 two_ranks.py MODEL OUTPUT

First through ``prepare``, then through the callback alone; the first also answers five rows, split over the
processes, and writes down what each of them has answered and measured. Last the image features are written through
``.data``, which must stop the run, and with it this program.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import Trainer

import vlm_lora_monkey.modeling
from vlm_lora_plugin import VlmLoraCallback, get_manager, load, prepare, training_arguments
from vlm_lora_plugin.data.example import Example, Message
from vlm_lora_plugin.errors import TrainingError
from vlm_lora_plugin.frameworks.answers import AnswerMetric
from vlm_lora_plugin.frameworks.groups import find_prepared
from vlm_lora_plugin.metrics import Metric
from vlm_lora_plugin.recipe import resolve_recipe

RECIPE = {
    "preset": "lora+llm-lora",
    "optimizer": {"learning_rate": 1e-3, "warmup_ratio": 0.0},
    "training": {
        "max_steps": 12,
        "save_steps": 6,
        "save_total_limit": 1,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 0,
    },
}


def write_through_data(embeds, blocks, tokens):
    embeds.data[blocks] = tokens.data
    return embeds


def examples():
    """Half of them with an image, so that often only one rank has one."""
    found = []
    for index in range(8):
        file = io.BytesIO()
        Image.new("RGB", (20, 20), (30 * index, 90, 30)).save(file, "PNG")
        mark = "<image>" if index % 2 else ""
        turns = (Message("user", f"{mark}number?"), Message("assistant", str(index) * (index + 1)))
        found.append(Example(turns, (file.getvalue(),) if mark else ()))
    return found


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

    metric = AnswerMetric(run, Noting(), examples()[:5], Metric("count", note), max_new_tokens=6)
    values = {}
    metric.on_evaluate(run.args, run.state, run.control, metrics=values)
    assert values == {"eval_count": 5.0}


def train(folder, output, way):
    base, processor = load(folder)
    recipe = resolve_recipe(RECIPE, get_manager().family_of_folder(folder))
    if way == "cut":
        vlm_lora_monkey.modeling.put_images = write_through_data
    run = Trainer(
        model=base if way == "callback" else prepare(base, RECIPE),
        args=training_arguments(
            recipe, output, disable_tqdm=True, ddp_backend="gloo", ddp_find_unused_parameters=False
        ),
        train_dataset=[processor.encode(example) for example in examples()],
        data_collator=processor.collate,
        callbacks=[VlmLoraCallback(RECIPE)],
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
