"""Every method of ``transformers.Trainer`` that this package wraps, and why: the whole list is :data:`HOOKS`.

No callback runs where these are needed. Each wrapper is put in once for the whole process and passes straight through
to the original for a Trainer whose model was not prepared, or that lacks the callback which it serves.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.diagnostics.resources import ResourceMeter
from vlm_lora_plugin.frameworks.trainer.checkpoints import check_resumed, complete_checkpoint
from vlm_lora_plugin.frameworks.trainer.collator import check_collator
from vlm_lora_plugin.frameworks.trainer.fsdp import refuse_fsdp
from vlm_lora_plugin.frameworks.trainer.groups import make_optimizer
from vlm_lora_plugin.frameworks.trainer.output import locked_output, whole_checkpoint
from vlm_lora_plugin.frameworks.trainer.parallel_layout import check_trainers_agree
from vlm_lora_plugin.parallel.agreement import check_same_checkpoint
from vlm_lora_plugin.parallel.deepspeed_log import quieten_deepspeed
from vlm_lora_plugin.parallel.heartbeat import naming_the_missing, now_in
from vlm_lora_plugin.parallel.sharding import full_tensors
from vlm_lora_plugin.parallel.zero3 import check_loaded_sharded
from vlm_lora_plugin.prepared.model import find_prepared

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import Trainer

_MARK = "_vlm_lora_hook"


@dataclass(frozen=True)
class Hook:
    """One wrapped method of ``transformers.Trainer``.

    Attributes:
        method: Its name.
        wrapper: Given the original, returns what stands in its place.
        why: What it is for, and why no callback can do it.
    """

    method: str
    wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]
    why: str


def install_hooks() -> None:
    """Wrap ``transformers.Trainer`` as :data:`HOOKS` says; a second call changes nothing."""
    from transformers import Trainer

    quieten_deepspeed()
    for hook in HOOKS:
        original = getattr(Trainer, hook.method)
        if not getattr(original, _MARK, False):
            wrapped = wraps(original)(hook.wrapper(original))
            setattr(wrapped, _MARK, True)
            setattr(Trainer, hook.method, wrapped)


def _create_optimizer(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_optimizer(self: Trainer, model: nn.Module | None = None) -> torch.optim.Optimizer:
        prepared = find_prepared(self.model if model is None else model)
        if prepared is not None and self.optimizer is None:
            self.optimizer = make_optimizer(self, prepared)
        optimizer: torch.optim.Optimizer = original(self, model)
        return optimizer

    return create_optimizer


def _save_checkpoint(original: Callable[..., Any]) -> Callable[..., Any]:
    def save_checkpoint(self: Trainer, model: nn.Module, trial: Any) -> None:
        now_in(f"step {self.state.global_step}, saving a checkpoint")
        if find_prepared(self.model) is None:
            original(self, model, trial)
            return
        limit = self.args.save_total_limit
        self.args.save_total_limit = None  # the last complete checkpoint is needed until this one is
        with whole_checkpoint(self, trial):
            try:
                original(self, model, trial)
            finally:
                self.args.save_total_limit = limit
            complete_checkpoint(self, trial)

    return save_checkpoint


def _save_model(original: Callable[..., Any]) -> Callable[..., Any]:
    def save_model(self: Trainer, output_dir: str | None = None, _internal_call: bool = False) -> None:
        prepared = find_prepared(self.model)
        if prepared is None or not self.is_deepspeed_enabled:
            original(self, output_dir, _internal_call)
            return
        # The Trainer would gather the frozen weights too, in the stage's own dtype.
        tensors = full_tensors(prepared.named_trainables(), keep=self.args.should_save)
        if self.args.should_save:
            self._save(output_dir, state_dict=tensors)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    return save_model


def _train(original: Callable[..., Any]) -> Callable[..., Any]:
    def train(self: Trainer, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        prepared = find_prepared(self.model)
        if prepared is None:
            return original(self, resume_from_checkpoint, *args, **kwargs)
        with locked_output(self), naming_the_missing():
            refuse_fsdp(self.args, self)
            check_trainers_agree(self, prepared, resume_from_checkpoint=bool(resume_from_checkpoint))
            check_loaded_sharded(prepared)
            check_collator(self)
            if resume_from_checkpoint:
                check_same_checkpoint(check_resumed(self, resume_from_checkpoint))
            return original(self, resume_from_checkpoint, *args, **kwargs)

    return train


def _run_epoch(original: Callable[..., Any]) -> Callable[..., Any]:
    def run_epoch(self: Trainer, *args: Any, **kwargs: Any) -> None:
        if find_prepared(self.model) is not None and self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        original(self, *args, **kwargs)

    return run_epoch


def _get_batch_samples(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_batch_samples(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        meter, prepared = _meter_of(self), find_prepared(self.model)
        now_in(f"step {self.state.global_step + 1}, fetching batches")
        with nullcontext() if meter is None else meter.fetching():
            batches, items = original(self, *args, **kwargs)
        if meter is not None:
            meter.count(batches)
        # Without the number of tokens a model returns its batch's mean, which the Trainer divides by their number.
        by_batch = prepared is not None and prepared.vlm_lora.recipe.loss_mean == "micro_batch"
        return batches, None if by_batch else items

    return get_batch_samples


def _log(original: Callable[..., Any]) -> Callable[..., Any]:
    def log(self: Trainer, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        meter = _meter_of(self)
        if meter is not None and "loss" in logs:  # not an evaluation, nor the closing summary
            logs.update(meter.read(partial(self.accelerator.reduce, reduction="sum")))
        original(self, logs, *args, **kwargs)

    return log


def _meter_of(trainer: Trainer) -> ResourceMeter | None:
    """Return the meter of the Trainer's ResourceMonitor, which is the callback with an attribute of that type."""
    meters = (getattr(callback, "meter", None) for callback in trainer.callback_handler.callbacks)
    return next((meter for meter in meters if isinstance(meter, ResourceMeter)), None)


HOOKS = (
    Hook("create_optimizer", _create_optimizer, "the recipe's groups; added later they would break resuming"),
    Hook("_save_checkpoint", _save_checkpoint, "old checkpoints would be deleted before the new one is complete"),
    Hook("save_model", _save_model, "under DeepSpeed the Trainer would gather the frozen weights, too"),
    Hook("train", _train, "FSDP and a general collator are refused, the folder locked, ranks and checkpoint checked"),
    Hook("_run_epoch", _run_epoch, "a run resumed from its last step would take one step more"),
    Hook(
        "get_batch_samples",
        _get_batch_samples,
        "the ResourceMonitor measures waiting for data; the recipe says what the loss is a mean of",
    ),
    Hook("log", _log, "the ResourceMonitor's numbers reach every callback's log"),
)
"""What is wrapped, in the order in which it is done."""
