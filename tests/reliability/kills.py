"""Kills a training process while it saves, again and again, and resumes it each time.

    python kills.py FOLDER KILLS SEED [LIMIT]

LIMIT is the only ``save_total_limit`` to try; without it each run draws one. Each run also draws its recipe, and
whether ``prepare`` or the callback alone prepares its model.

Prints JSON: when each kill came, and whether every finished run equals the uninterrupted one. Python, torch and
the model are loaded once; each start is a fork that builds its own Trainer.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file
from toy_family import ToyAdapter, ToyDataset, toy_model
from transformers import Trainer, default_data_collator

from vlm_lora_plugin import VlmLoraCallback, get_manager, prepare, training_arguments

STEPS = 6
PRESETS = ("lora+llm-lora", "lora")
WAYS = ("prepare", "callback")
LIMITS = (1, 2, None)
NEVER = STEPS + 1
RESUMED, SAVING, SAVED = b"r", b"s", b"d"


class Reporting(Trainer):
    """Tells through a pipe when saving begins, and when the Trainer goes on."""

    pipe: int

    def say(self, what):
        os.write(self.pipe, what + bytes([self.state.global_step]))

    def _init_training_state(self, *args, **kwargs):
        result = super()._init_training_state(*args, **kwargs)
        self.say(RESUMED)
        return result

    def _save_checkpoint(self, model, trial):
        self.say(SAVING)
        super()._save_checkpoint(model, trial)
        self.say(SAVED)


def train(folder, pipe, way, preset, limit):
    recipe = {
        "preset": preset,
        "optimizer": {"learning_rate": 1e-2, "warmup_ratio": 0.0},
        "training": {
            "max_steps": STEPS,
            "save_steps": 1,
            "save_total_limit": limit,
            "gradient_accumulation_steps": 1,
            "dataloader_num_workers": 0,
        },
    }
    prepared = prepare(toy_model(), recipe)  # its arguments fit the other way too
    run = Reporting(
        model=prepared if way == "prepare" else toy_model(),
        args=training_arguments(prepared, folder, disable_tqdm=True, logging_steps=STEPS),
        train_dataset=ToyDataset(),
        data_collator=default_data_collator,
        callbacks=[VlmLoraCallback(recipe)],
    )
    run.pipe = pipe
    try:
        run.train(resume_from_checkpoint=folder.exists())
    except ValueError as error:  # nothing is complete yet: a user starts anew
        if "No valid checkpoint" not in str(error):
            raise
        run.train()


def start(folder, way, preset, limit):
    """Fork a training process; returns its id and the end of the pipe that it reports through."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            train(folder, writing, way, preset, limit)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    return child, reading


def read(reading, heard):
    """Wait for one report; returns whether there was one."""
    message = os.read(reading, 2)
    if message:
        heard.append((message[:1], message[1], time.monotonic()))
    return bool(message)


def follow(reading, delay, saves):
    """Read reports; return them once the ``saves``-th save has lasted ``delay`` seconds, or the run is over."""
    heard = []
    while sum(kind == SAVING for kind, _, _ in heard) < saves:
        if not read(reading, heard):
            return heard, False
    until = time.monotonic() + delay
    while (left := until - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0] and not read(reading, heard):
            return heard, False
    return heard, True


def result(folder):
    last = folder / f"checkpoint-{STEPS}"
    files = [load_file(path) for path in sorted(last.glob("*.safetensors"))]
    return files, torch.load(last / "optimizer.pt", weights_only=True)["state"]


def equal(left, right):
    weights = all(torch.equal(a[name], b[name]) for a, b in zip(left[0], right[0], strict=True) for name in a)
    states = all(torch.equal(left[1][i][key], right[1][i][key]) for i in left[1] for key in left[1][i])
    return weights and states and [a.keys() for a in left[0]] == [b.keys() for b in right[0]]


def main(folder, kills, seed, limits=LIMITS):
    get_manager().register(ToyAdapter())
    chance = random.Random(seed)
    references, duration = {}, 0.0
    for way, preset in product(WAYS, PRESETS):
        child, reading = start(folder / f"{way}-{preset}", way, preset, None)
        heard, _ = follow(reading, 0, NEVER)
        times = {(kind, step): when for kind, step, when in heard}
        lasted = [times[SAVED, step] - times[SAVING, step] for step in range(1, STEPS + 1)]
        duration = max(duration, sorted(lasted)[STEPS // 2] * 1.2)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            raise RuntimeError(f"the uninterrupted run failed after {heard}")
        references[way, preset] = result(folder / f"{way}-{preset}")

    report = {"kills": [], "runs": [], "wrong": [], "incomplete": 0}
    number = 0
    while len(report["kills"]) < kills:
        number += 1
        way, preset, limit = chance.choice(WAYS), chance.choice(PRESETS), chance.choice(limits)
        output, done, in_doubt = folder / f"run-{number}", 0, 0
        while True:
            killing = len(report["kills"]) < kills
            child, reading = start(output, way, preset, limit)
            delay = chance.uniform(0, duration)
            heard, killed = follow(reading, delay, chance.randint(1, 2) if killing else NEVER)
            if killed:
                os.kill(child, signal.SIGKILL)
                report["kills"].append(round(delay, 4))
            while read(reading, heard):  # what it said before it died
                pass
            os.close(reading)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            resumed = heard[0][1] if heard else None
            # From the newest complete one: the last that was finished, or the one being finished at the kill.
            if resumed not in (done, in_doubt):
                report["wrong"].append(f"run {number}: resumed from {resumed} instead of {done} or {in_doubt}")
            done = max([done, *(step for kind, step, _ in heard if kind in (SAVED, RESUMED))])
            in_doubt = max([done, *(step for kind, step, _ in heard if kind == SAVING)])
            if status == 0:
                break
            if not killed:
                report["wrong"].append(f"run {number}: failed with status {status} after {heard}")
                break
        if status == 0:
            same = equal(result(output), references[way, preset])
            report["runs"].append({"way": way, "preset": preset, "limit": limit, "equal": same})
        report["incomplete"] += len(list(output.glob("incomplete-*")))
        shutil.rmtree(output, ignore_errors=True)
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), [int(limit) for limit in sys.argv[4:]] or LIMITS)
