"""Answers to validation data at each evaluation of a Trainer, and what a metric makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlm_lora_plugin.answering.evaluation import generate_answers
from vlm_lora_plugin.answering.known import known_answers
from vlm_lora_plugin.answering.samples import Sample, sample_answers
from vlm_lora_plugin.errors import TrainingError, VlmLoraError
from vlm_lora_plugin.parallel.heartbeat import now_in
from vlm_lora_plugin.parallel.sharding import is_sharded

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer

    from vlm_lora_plugin.answering.metrics import Metric
    from vlm_lora_plugin.contract import Processor
    from vlm_lora_plugin.contract.example import Example
    from vlm_lora_plugin.prepared.model import VlmLoraPeftModel


class AnswerMetric(TrainerCallback):
    """Answers examples greedily after each evaluation and logs the metric as ``eval_<name>``.

    The values also join the evaluation's own, so that ``metric_for_best_model`` may name them. In a job of several
    processes each answers its share of the examples, and all measure all answers. Under ZeRO-3 each answers all of
    them, because every process must take part in each other's forward passes.

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
        answers = self._answer(self._examples, self._max_new_tokens)
        values = {f"eval_{name}": value for name, value in self._metric(answers, self._examples).items()}
        if metrics is not None:
            metrics.update(values)
        self._trainer.log(values)

    def rehearse(self) -> None:
        """Generate one token and measure the known answers, so that what fails here fails before training.

        Where ZeRO-3 shards the weights nothing is generated: only its engine, made later, can.

        Raises:
            TrainingError: The model cannot generate, or the metric fails.
            DataError: An example does not end with an answer.
        """
        known = known_answers(self._examples)
        model = self._trainer.model
        try:
            self._answer([] if model is not None and _is_sharded(model) else self._examples[:1], 1)
        except VlmLoraError:
            raise
        except Exception as error:  # generation runs a family's model code, which may raise anything
            raise TrainingError(
                f"The model cannot answer validation data: {type(error).__name__}: {error}",
                fix="--set evaluation.metric=null evaluates the loss alone.",
            ) from error
        self._metric(known, self._examples)

    def _answer(self, examples: Sequence[Example], max_new_tokens: int) -> list[str]:
        trainer, model = self._trainer, self._trainer.model
        if model is None:
            raise TrainingError("The Trainer has no model to answer with", fix="Build it with a prepared model.")
        state = trainer.accelerator
        rank, ranks = (0, 1) if _is_sharded(model) else (state.process_index, state.num_processes)
        with state.autocast():
            own = generate_answers(
                model,
                self._processor,
                examples[rank::ranks],
                max_new_tokens=max_new_tokens,
                batch_size=trainer.args.per_device_eval_batch_size,
            )
        if ranks == 1:
            return own
        shares = gather_object([own])  # one list of each process, in the order of their ranks
        return [shares[index % ranks][index // ranks] for index in range(len(examples))]


def sampled_answers(trainer: Trainer, processor: Processor, model: VlmLoraPeftModel) -> Sample | None:
    """Return some answers of a model that has just been trained, as the recipe asks; None on all ranks but the first.

    They are of the validation data, or without it of the training data. Where ZeRO-3 shards the weights every token
    would gather all of them, so nothing is answered.

    Args:
        trainer: Its Trainer, whose data sets are :class:`~vlm_lora_plugin.data.dataset.ConversationDataset`.
        processor: The model's processor.
        model: The trained model.
    """
    evaluation = model.vlm_lora.recipe.evaluation
    if not evaluation.sample_answers or not trainer.is_world_process_zero():
        return None
    validates = trainer.eval_dataset is not None
    name, data = ("validation", trainer.eval_dataset) if validates else ("training", trainer.train_dataset)
    examples: Sequence[Example] = getattr(data, "examples", ())
    if _is_sharded(model):
        return Sample((), name, len(examples), "ZeRO-3 would gather the whole model for each token")
    now_in("sampling answers", counts=False)
    return sample_answers(
        model,
        processor,
        examples,
        name,
        count=evaluation.sample_answers,
        seed=model.vlm_lora.recipe.seed,
        max_new_tokens=evaluation.max_new_tokens,
        autocast=trainer.accelerator.autocast(),
    )


def _is_sharded(model: nn.Module) -> bool:
    return any(is_sharded(parameter) for parameter in model.parameters())
