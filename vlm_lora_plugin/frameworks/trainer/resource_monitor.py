"""The resource monitor of a Trainer: its numbers go into the Trainer's own logs.

No callback sees the fetching of batches, and what a callback adds to ``logs`` comes after the reports of the
callbacks before it. So :mod:`vlm_lora_plugin.frameworks.trainer.hooks` wraps ``get_batch_samples`` and ``log``.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlm_lora_plugin.diagnostics.resources import ResourceMeter, ResourceSummary
from vlm_lora_plugin.frameworks.trainer.hooks import install_hooks
from vlm_lora_plugin.prepared.model import find_prepared


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
        install_hooks()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to measure."""
        prepared = find_prepared(kwargs["model"])
        counting = () if prepared is None else (prepared.vlm_lora.trainable.architecture.count_images,)
        self.summary, self.meter = None, ResourceMeter(args.device, *counting)

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
