"""``python -m vlm_lora_plugin.demo.reload BASE ADAPTER DATA``: the answers of a reloaded adapter, as JSON."""

from __future__ import annotations

import json
import sys

import torch

from vlm_lora_plugin.answering.evaluation import generate_answers
from vlm_lora_plugin.data.files import read_examples
from vlm_lora_plugin.demo.demo_job import ANSWER_TOKENS, BATCH
from vlm_lora_plugin.loading import load
from vlm_lora_plugin.preparation import load_adapter


def main(base: str, adapter: str, data: str) -> None:
    """Print the list of answers."""
    torch.set_num_threads(1)  # as in the process that trained
    plain, processor = load(base)
    model = load_adapter(plain, adapter)
    examples = read_examples(data, model.vlm_lora.family)
    answers = generate_answers(model, processor, examples, max_new_tokens=ANSWER_TOKENS, batch_size=BATCH)
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
