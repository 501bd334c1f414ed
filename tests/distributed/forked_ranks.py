"""One rank of a training job, with the Trainer or with ms-swift, that is killed wherever asked.

    python forked_ranks.py trainer|swift JOB.json

Every rank is a fork of a process that has the libraries imported (``tests/warm_server.py``). A job:

``model``, ``data``, ``output`` (the folder of checkpoints), ``recipe``, and
if wanted ``recipes`` and ``sets`` (rank -> recipe laid over that, data file), ``deepspeed``, ``dtype``,
``val``, ``resume`` (a checkpoint), ``arguments`` (further TrainingArguments, or options of ``swift sft``), ``module``
(Python that every rank runs first) and ``kill`` (see :class:`Moments`).

Each rank leaves ``error`` and ``message``, ``seconds`` and ``events`` (what it did to the files of its checkpoints).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path


class Moments:
    """Counts what this process does to the files of checkpoints, and kills it at one of these moments.

    ``kill``: ``rank``, ``event`` (its number, from 0) and ``cut`` (halve the file written last before, as when its
    end never reached the disk).
    """

    def __init__(self, output, kill):
        self.events = []
        self._output, self._kill, self._last, self._busy = str(output), kill, None, False
        sys.addaudithook(self._audit)
        self._watch_torch()

    def _watch_torch(self):
        """``torch.save`` opens its file where no audit hook sees it."""
        import torch

        save = torch.save

        def watched(value, f, *args, **kwargs):
            save(value, f, *args, **kwargs)
            if isinstance(f, (str, os.PathLike)):
                self._happened("torch.save", f)

        torch.save = watched

    def _audit(self, name, args):
        if self._busy or not args:
            return
        if name == "open":  # one that makes a file; not one that flushes what is there
            does = isinstance(args[2], int) and args[2] & os.O_CREAT
        else:
            does = name in ("os.remove", "os.rename") and os.path.exists(args[0])
        if does:
            self._happened(name, args[0])

    def _happened(self, name, path):
        if not isinstance(path, (str, os.PathLike)) or not str(path).startswith(self._output):
            return
        inside = str(path)[len(self._output) :].strip(os.sep)
        if not inside.startswith("checkpoint-"):
            return
        self._busy = True
        if len(self.events) == (self._kill or {}).get("event"):
            if self._kill.get("cut"):
                cut = Path(path) if name == "torch.save" else self._last
                if cut is not None and cut.is_file():
                    os.truncate(cut, cut.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        self.events.append(f"{name} {inside}")
        if name in ("open", "torch.save"):
            self._last = Path(path)
        self._busy = False


def merged(document, changes):
    result = dict(document)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def train_in_trainer(job, recipe, data):
    import torch
    from transformers import Trainer

    from vlm_lora_plugin import ConversationDataset, VlmLoraCallback, get_manager, load, prepare, training_arguments
    from vlm_lora_plugin.planning.resolve import resolve_recipe

    recipe = resolve_recipe(recipe, get_manager().family_of_folder(Path(job["model"])))
    dtype = getattr(torch, job.get("dtype", "float32"))
    options = {"use_cpu": True, "ddp_backend": "gloo", "disable_tqdm": True, "ddp_find_unused_parameters": False}
    options |= job.get("arguments", {})
    if job.get("deepspeed"):
        options["deepspeed"] = job["deepspeed"]
    arguments = training_arguments(recipe, job["output"], dtype=dtype, evaluate=bool(job.get("val")), **options)
    base, processor = load(job["model"], recipe, dtype=dtype)
    model = prepare(base, recipe)

    def rows(file):
        return ConversationDataset(file, processor, recipe.data, model.vlm_lora.family, seed=recipe.seed)

    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows(data),
        eval_dataset=rows(job["val"]) if job.get("val") else None,
        data_collator=processor.collate,
        callbacks=[VlmLoraCallback()],
    )
    trainer.train(resume_from_checkpoint=job.get("resume"))
    model.save_pretrained(Path(job["output"]) / "adapter")


def train_in_swift(job, recipe, data):
    from swift.pipelines import sft_main

    from vlm_lora_plugin.frameworks.swift.arguments import plugin_arguments

    options = {
        "model": job["model"],
        "dataset": data,
        "output_dir": job["output"],
        "torch_dtype": job.get("dtype", "float32"),
        "add_version": "false",
        "disable_tqdm": "true",
        "report_to": "none",
        "ddp_backend": "gloo",
        **job.get("arguments", {}),
    }
    for option, key in (("val_dataset", "val"), ("resume_from_checkpoint", "resume")):
        if job.get(key):
            options[option] = job[key]
    if job.get("deepspeed"):
        options["deepspeed"] = json.dumps(job["deepspeed"])
    sft_main(
        [*(text for name, value in options.items() for text in (f"--{name}", str(value))), *plugin_arguments(recipe)]
    )


def run_rank(train, job, rank, left):
    """Train as one rank; never returns."""
    begun, status, said, moments = time.monotonic(), 0, {}, None
    try:
        kill = job.get("kill")
        moments = Moments(job["output"], kill if kill and kill["rank"] == rank else None)
        if job.get("module"):
            exec(job["module"], {})
        recipe = merged(job["recipe"], job.get("recipes", {}).get(str(rank), {}))
        data = job.get("sets", {}).get(str(rank), job["data"])
        train(job, recipe, data)
    except BaseException as error:  # also what asks the interpreter to end
        traceback.print_exc()
        said, status = {"error": type(error).__name__, "message": str(error)}, 3
    said |= {"seconds": time.monotonic() - begun, "events": moments.events if moments else []}
    (left / f"partial-{rank}").write_text(json.dumps(said))
    (left / f"partial-{rank}").rename(left / f"result-{rank}.json")  # whole, or not at all
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the interpreter's own end sometimes aborts on a CPU


def main(framework, file):
    import deepspeed

    if framework == "swift":
        import vlm_lora_plugin.frameworks.swift.registration
        import vlm_lora_plugin.frameworks.swift.trainer  # noqa: F401

    # All-reduce through shared memory, for inference on a CPU, takes a minute to build.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    train = {"trainer": train_in_trainer, "swift": train_in_swift}[framework]
    run_rank(train, json.loads(Path(file).read_text()), int(os.environ["RANK"]), Path(file).parent)


if __name__ == "__main__":
    main(*sys.argv[1:])
