"""Answers to validation data at each evaluation of a Trainer, and what a metric makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlm_lora_plugin.evaluation import generate_answers

if TYPE_CHECKING:
    from transformers import Trainer

    from vlm_lora_plugin.data.example import Example
    from vlm_lora_plugin.metrics import Metric
    from vlm_lora_plugin.types import Processor


class AnswerMetric(TrainerCallback):
    """Answers examples greedily after each evaluation and logs the metric as ``eval_<name>``.

    The values also join the evaluation's own, so that ``metric_for_best_model`` may name them. In a job of several
    processes each answers the same examples.

    Args:
        trainer: The Trainer that this callback is added to.
        processor: The model's processor.
        examples: Conversations whose last message is the known answer.
        metric: What is made of the answers.
        max_new_tokens: Longest answer in tokens.
    """

    def __init__(
        self,
        trainer: Trainer,
        processor: Processor,
        examples: Sequence[Example],
        metric: Metric,
        *,
        max_new_tokens: int,
    ) -> None:
        self._trainer, self._processor, self._examples = trainer, processor, examples
        self._metric, self._max_new_tokens = metric, max_new_tokens

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Answer, measure, log."""
        with self._trainer.accelerator.autocast():
            answers = generate_answers(
                kwargs["model"],
                self._processor,
                self._examples,
                max_new_tokens=self._max_new_tokens,
                batch_size=args.per_device_eval_batch_size,
            )
        values = {f"eval_{name}": value for name, value in self._metric(answers, self._examples).items()}
        if metrics is not None:
            metrics.update(values)
        self._trainer.log(values)
