"""A real, short run: what it saves is what it trained, it resumes to the bit, merges, and Swift does the same."""

from __future__ import annotations

import importlib.util
import shutil

import torch

from vlm_lora_plugin.errors import listed
from vlm_lora_plugin.loading import load
from vlm_lora_plugin.merging.merge import TOLERANCE, merge_adapter
from vlm_lora_plugin.preparation import load_adapter
from vlm_lora_plugin.testing.short_run import SAVED, SETTINGS, STEPS, ShortRun
from vlm_lora_plugin.testing.subject import Subject, apart, logits_of, text_only, with_image
from vlm_lora_plugin.testing.verdict import NotApplicable, require


def a_saved_adapter_is_the_trained_model(subject: Subject) -> None:
    """A checkpoint on a freshly loaded base gives the trained model's tensors and logits, to the bit."""
    run, batch = subject.run, subject.batch(with_image(), text_only())
    again = load_adapter(subject.model(), run.adapter)
    trained, loaded = run.tensors(), again.named_trainables()
    different = sorted(name for name in trained if not torch.equal(trained[name], loaded[name]))
    require(
        trained.keys() == loaded.keys(), f"other tensors are loaded: {listed(sorted(trained.keys() ^ loaded.keys()))}"
    )
    require(not different, f"these tensors differ: {listed(different)}")
    logits = logits_of(run.model, batch)
    require(torch.equal(logits_of(again, batch), logits), "the logits differ")
    require(not torch.equal(logits_of(subject.plain, batch), logits), "four steps changed nothing")


def a_resumed_run_equals_the_uninterrupted_one(subject: Subject) -> None:
    """From the checkpoint half-way, a new process' Trainer ends with the same tensors and logs, to the bit."""
    run, output = subject.run, subject.work / "resumed"
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(run.output / f"checkpoint-{SAVED}", output / f"checkpoint-{SAVED}")
    again = ShortRun.train(subject, output, resume=True)
    whole, resumed = run.tensors(), again.tensors()
    different = sorted(name for name in whole if not torch.equal(whole[name], resumed[name]))
    require(not different, f"these tensors differ: {listed(different)}")
    require(again.logged() == run.logged(), f"logged: {again.logged()}, uninterrupted: {run.logged()}")


def a_merged_folder_answers_as_the_adapter_does(subject: Subject) -> None:
    """``merge_adapter`` writes a plain folder with the adapter's logits within its tolerance."""
    output = subject.work / "merged"
    shutil.rmtree(output, ignore_errors=True)
    report = merge_adapter(subject.folder, subject.run.adapter, output, dtype=torch.float32)
    limit = TOLERANCE[torch.float32]
    require(report.error <= limit, f"its own comparison finds {report.error:.1e}, {limit:.0e} is allowed")
    batch = subject.batch(with_image(), text_only())
    merged = load(output, dtype=torch.float32)[0]
    found = apart(logits_of(merged, batch), logits_of(subject.run.model, batch))
    require(found <= limit, f"logits differ by {found:.1e} of the largest, {limit:.0e} is allowed")


def both_frameworks_train_the_same_bits(subject: Subject) -> None:
    """The Trainer and ``swift sft`` take the same steps, bit for bit, with evaluation; other processes."""
    if importlib.util.find_spec("swift") is None:
        raise NotApplicable("ms-swift is not installed: pip install 'vlm-lora-plugin[swift]'")
    from vlm_lora_plugin.parity.both_runs import run
    from vlm_lora_plugin.parity.parity_job import ParityJob

    data, output = subject.data, subject.work / "parity"
    settings = {"training": {**SETTINGS, "eval_steps": 2}}
    outcome = run(ParityJob(subject.folder, data.train, output, data.validation, overrides=settings))
    found = outcome.difference
    require(found is None, f"the Trainer and ms-swift part: {found}")
    steps = [len(one.steps()) for one in outcome.runs]
    require(steps == [STEPS, STEPS], f"they took {steps} steps")
