"""``prepare_model``, for a loop of your own, leaves every library as it is; ``prepare`` adds the Trainer's hooks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import toy_family

import vlm_lora_plugin

LOOP = """
import sys
import torch
from accelerate import Accelerator
from toy_family import ToyAdapter, toy_batch, toy_model
from transformers import Trainer

from vlm_lora_plugin import get_manager, parameter_groups, prepare, prepare_model
from vlm_lora_plugin.frameworks.trainer.hooks import HOOKS

get_manager().register(ToyAdapter())
methods = lambda: {(owner, name): value for owner in Trainer.__mro__ for name, value in vars(owner).items()}
before = methods()

model = prepare_model(toy_model(), "lora+llm-lora")
accelerator = Accelerator(cpu=True)
model, optimizer = accelerator.prepare(model, torch.optim.AdamW(parameter_groups(model)))
first = None
for step in range(3):
    loss = model(**toy_batch()).loss
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    first = first or loss.item()
accelerator.unwrap_model(model).save_pretrained(sys.argv[1])
prepare_model(toy_model(), "lora+llm-lora").load_adapter(sys.argv[1], is_trainable=True)
assert loss.item() < first
assert methods() == before, "a plain loop got a changed Trainer"

prepare(toy_model(), "lora")
now = methods()
changed = [name for owner, name in now if now[owner, name] is not before.get((owner, name))]
assert sorted(changed) == sorted(hook.method for hook in HOOKS), changed
prepare(toy_model(), "lora")
assert methods() == now, "wrapped twice"
print("as it should be")
"""


def test_a_plain_accelerate_loop_leaves_the_trainer_as_it_was_and_prepare_wraps_what_hooks_lists(tmp_path):
    """In a fresh process, since this one has wrapped the Trainer."""
    tests = str(Path(toy_family.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{LOOP}", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "as it should be"


def test_both_say_which_they_are():
    assert "hooks.HOOKS" in vlm_lora_plugin.prepare.__doc__
    assert "wraps nothing" in vlm_lora_plugin.prepare_model.__doc__
