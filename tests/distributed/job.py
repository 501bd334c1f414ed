"""Training jobs of a tiny Monkey on any number of CPU processes, each described by a JSON file, one after the other.

    torchrun --nproc-per-node 2 job.py JOB.json...

Keys of the job: ``model``, ``output``, ``recipe``; and if wanted ``deepspeed``, ``dtype``, ``rows`` (one letter
for each: ``i`` has an image, ``I`` two, ``t`` none), ``resume``, ``crash`` and ``recipes`` (by rank).
Each rank leaves ``result-<rank>.json`` in the output folder: what it saw, or the error that stopped it. The
process then ends at once, so that nothing that the interpreter's own end brings can change the verdict.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from pathlib import Path

import torch
from PIL import Image
from transformers import Trainer, TrainerCallback

from vlm_lora_plugin import VlmLoraCallback, get_manager, load, prepare, training_arguments
from vlm_lora_plugin.data.example import Example, Message
from vlm_lora_plugin.recipe import resolve_recipe

RANK = int(os.environ.get("RANK", "0"))


class InOrder(Trainer):
    """Takes the rows as they come, so that one process and two see the same batches."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Losses(TrainerCallback):
    def __init__(self):
        self.logged = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.logged.append({"step": state.global_step, "loss": logs["loss"], "grad_norm": logs["grad_norm"]})


def rows(processor, kinds):
    examples = []
    for index, kind in enumerate(kinds):
        images = []
        for number in range("tiI".index(kind)):
            file = io.BytesIO()
            Image.new("RGB", (20, 20), (30 * index % 256, 90 + 60 * number, 30)).save(file, "PNG")
            images.append(file.getvalue())
        turns = (Message("user", "<image>" * len(images) + "number?"), Message("assistant", str(index) * (index + 1)))
        examples.append(Example(turns, tuple(images)))
    return [processor.encode(example) for example in examples]


def skip_compiling():
    """Leave out DeepSpeed's all-reduce through shared memory, for inference on a CPU, which takes a minute to build."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def run(job):
    output = Path(job["output"])
    document = job.get("recipes", [job["recipe"]] * 2)[RANK]
    recipe = resolve_recipe(document, get_manager().family_of_folder(Path(job["model"])))
    options = {"disable_tqdm": True, "ddp_find_unused_parameters": False, "use_cpu": True, "ddp_backend": "gloo"}
    if job.get("deepspeed"):
        skip_compiling()
        options["deepspeed"] = job["deepspeed"]
    dtype = getattr(torch, job.get("dtype", "float32"))
    arguments = training_arguments(recipe, output / "checkpoints", dtype=dtype, **options)
    base, processor = load(job["model"], dtype=dtype)
    model = prepare(base, recipe)
    losses = Losses()
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=rows(processor, job["rows"]),
        data_collator=processor.collate,
        callbacks=[VlmLoraCallback(), losses],
    )
    trainer.train(resume_from_checkpoint=job.get("resume"))
    model.save_pretrained(output / "adapter")
    return {"losses": losses.logged}


def main(paths):
    status = 0
    for path in paths:
        job = json.loads(Path(path).read_text())
        try:
            result = run(job)
        except Exception as error:
            traceback.print_exc()
            result, status = {"error": type(error).__name__, "message": str(error)}, 3
        output = Path(job["output"])
        output.mkdir(parents=True, exist_ok=True)
        (output / f"result-{RANK}.json").write_text(json.dumps(result))
        if status:
            break
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
