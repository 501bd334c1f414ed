"""Jobs of a tiny model on any number of CPU processes, each described by a JSON file, one after the other.

    torchrun --nproc-per-node 2 job.py JOB.json...

Keys of a job: ``model``, ``output``, ``rows`` (one letter of ``rows.IMAGES`` each), and if wanted ``evaluate`` (rows
of the same kind), ``recipe`` (over the common one), ``recipes`` (rank -> recipe over that), ``deepspeed``, ``dtype``,
``mistake`` (something that must stop the job) and ``only`` (``load`` ends it when the model is loaded, and notes the
bits of its weights).

Each rank leaves ``result-<rank>.json`` in the output folder: what it saw, or the error that stopped it. The process
then ends at once, so that nothing that the interpreter's own end brings can change the verdict. One whose job takes
``JOB_SECONDS`` prints where it stands and ends, and so does the launcher then.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import sys
import time
import traceback
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from rows import examples
from transformers import Trainer, TrainerCallback

from vlm_lora_plugin import VlmLoraCallback, get_manager, load, prepare, training_arguments
from vlm_lora_plugin.models import weights
from vlm_lora_plugin.parallel.sharding import gathered
from vlm_lora_plugin.planning.resolve import resolve_recipe

RANK = int(os.environ.get("RANK", "0"))
WORLD = int(os.environ.get("WORLD_SIZE", "1"))
SECONDS = float(os.environ.get("JOB_SECONDS", "300"))
BATCH = 4
STEPS = 4

PRESETS = {"monkey": "lora+llm-lora", "omnilmm": "lora", "xcomposer": "lora"}
COMMON = {
    "optimizer": {"learning_rate": 1e-3, "warmup_ratio": 0.0},
    "training": {
        "max_steps": STEPS,
        "save_steps": 2,
        "per_device_train_batch_size": BATCH // WORLD,
        "per_device_eval_batch_size": BATCH // WORLD,
        "eval_steps": 2,
        "gradient_accumulation_steps": 1,
        "dataloader_num_workers": 0,
    },
}


class InOrder(Trainer):
    """Takes the rows as they come, so that one process and two see the same batches."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Losses(TrainerCallback):
    def __init__(self):
        self.logged, self.evaluated = {}, {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "eval_loss" in logs:
            self.evaluated[state.global_step] = logs["eval_loss"]
        if "loss" in logs:
            self.logged[state.global_step] = (logs["loss"], logs["grad_norm"])


def merged(document, changes):
    result = dict(document)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def skip_compiling():
    """Leave out DeepSpeed's all-reduce through shared memory, for inference on a CPU, which takes a minute to build."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def cut_image_gradient():
    """Let images be put among the embeddings behind autograd's back."""
    from vlm_lora_plugin.models import ImageRunsModel, ImageTextModel

    for kind in (ImageTextModel, ImageRunsModel):
        kind.splice = writing_through_data(kind.splice)


def writing_through_data(splice):
    def write(model, input_ids, embeds, images):
        placed, mask = splice(model, input_ids, embeds, images)
        embeds.data = placed.data
        return embeds, mask

    return write


def count_calls(model):
    """Return what counts the calls of every module in training and in evaluation, from now on."""
    calls = {"training": Counter(), "evaluation": Counter()}

    def count(name, module, *_):
        calls["training" if module.training else "evaluation"][name] += 1

    for name, module in model.get_base_model().named_modules():
        module.register_forward_hook(partial(count, name))
    return calls


def bits(model):
    """Return a digest of every parameter, the full one where it is sharded, and of every buffer."""
    found = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        with gathered([tensor]):
            content = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            found[name] = f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(content).hexdigest()}"
    return found


def run(job):
    if job.get("mistake") == "one rank never comes" and RANK:
        time.sleep(3600)
    output = Path(job["output"])
    family = get_manager().family_of_folder(Path(job["model"]))
    changes = merged(job.get("recipe", {}), job.get("recipes", {}).get(str(RANK), {}))
    document = merged({"preset": PRESETS[family.name], **COMMON}, changes)
    if document["preset"] != "full":  # which trains nothing by PEFT's LoRA
        document = merged({"lora": {"lora_dropout": 0.0}}, document)
    recipe = resolve_recipe(document, family)
    options = {"disable_tqdm": True, "ddp_find_unused_parameters": False, "use_cpu": True, "ddp_backend": "gloo"}
    if job.get("deepspeed"):
        skip_compiling()
        weights.PARTITIONED_BYTES = 2**16  # so that a tiny model is loaded in several portions
        options["deepspeed"] = job["deepspeed"]
    dtype = getattr(torch, job.get("dtype", "float32"))

    def make_arguments():
        return training_arguments(
            recipe, output / "checkpoints", dtype=dtype, evaluate=bool(job.get("evaluate")), **options
        )

    mistake = job.get("mistake")
    if mistake == "image gradient cut":
        cut_image_gradient()
    arguments = None if mistake == "arguments last" else make_arguments()
    base, processor = load(job["model"], dtype=dtype)
    if job.get("only") == "load":
        return {"bits": bits(base)}
    arguments = arguments or make_arguments()
    model = prepare(base, recipe)
    model.save_pretrained(output / "start")
    losses = Losses()
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=[processor.encode(example) for example in examples(job["rows"])],
        eval_dataset=[processor.encode(example) for example in examples(job.get("evaluate", ""))] or None,
        data_collator=processor.collate,
        callbacks=[VlmLoraCallback(), losses],
    )
    calls = count_calls(model)
    trainer.train()
    if mistake == "prepare in an engine":
        prepare(trainer.model_wrapped, recipe)
    model.save_pretrained(output / "adapter")
    return {"losses": losses.logged, "evaluated": losses.evaluated, "calls": calls}


def main(paths):
    status = 0
    for path in paths:
        job = json.loads(Path(path).read_text())
        faulthandler.dump_traceback_later(SECONDS, exit=True)
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
