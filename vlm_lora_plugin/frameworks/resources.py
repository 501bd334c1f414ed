"""The resource monitor of a Trainer: its numbers go into the Trainer's own logs.

No callback sees the fetching of batches, and what a callback adds to ``logs`` comes after the reports of the
callbacks before it. So ``get_batch_samples`` and ``log`` are wrapped once for the whole process, and act only
on Trainers that have the callback.
"""

from __future__ import annotations

from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlm_lora_plugin.diagnostics.resources import ResourceMeter, ResourceSummary
from vlm_lora_plugin.frameworks.groups import find_prepared

if TYPE_CHECKING:
    from transformers import Trainer

_MARK = "_vlm_lora_resources"


class ResourceMonitor(TrainerCallback):
    """Adds memory (GiB), tokens and images a second, and the share of waiting for data to each training log.

    The keys are those of :meth:`vlm_lora_plugin.diagnostics.resources.ResourceMeter.read`; time spent on
    evaluating and saving does not count.

    Attributes:
        summary: What limited the run; None before a run has ended.
    """

    def __init__(self) -> None:
        self.summary: ResourceSummary | None = None
        self.meter: ResourceMeter | None = None
        _install()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to measure."""
        self.summary, self.meter = None, ResourceMeter(args.device)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the end of a step."""
        if self.meter is not None:
            self.meter.step_done()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the time of an evaluation out."""
        if self.meter is not None:
            self.meter.interrupted()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the time of saving out."""
        if self.meter is not None:
            self.meter.interrupted()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sum up."""
        if self.meter is None:
            return
        self.meter.read()  # steps since the last log
        prepared = find_prepared(kwargs["model"])
        recomputed = prepared.vlm_lora.recipe.gradient_checkpointing if prepared is not None else {}
        self.summary = self.meter.summary(
            workers=args.dataloader_num_workers, checkpointed=[name for name, on in recomputed.items() if on]
        )
        self.meter = None


def _install() -> None:
    """Wrap ``transformers.Trainer``; a second call changes nothing."""
    from transformers import Trainer

    fetch, log = Trainer.get_batch_samples, Trainer.log
    if getattr(log, _MARK, False):
        return

    @wraps(fetch)
    def get_batch_samples(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        meter = _meter_of(self)
        if meter is None:
            return fetch(self, *args, **kwargs)
        with meter.fetching():
            found = fetch(self, *args, **kwargs)
        meter.count(found[0])
        return found

    @wraps(log)
    def log_with_resources(self: Trainer, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        meter = _meter_of(self)
        if meter is not None and "loss" in logs:  # not an evaluation, nor the closing summary
            logs.update(meter.read(partial(self.accelerator.reduce, reduction="sum")))
        log(self, logs, *args, **kwargs)

    setattr(log_with_resources, _MARK, True)
    Trainer.get_batch_samples = get_batch_samples  # type: ignore[method-assign]
    Trainer.log = log_with_resources  # type: ignore[method-assign]


def _meter_of(trainer: Trainer) -> ResourceMeter | None:
    monitors = (entry for entry in trainer.callback_handler.callbacks if isinstance(entry, ResourceMonitor))
    return next((monitor.meter for monitor in monitors), None)
