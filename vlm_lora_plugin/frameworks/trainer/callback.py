"""The callback that checks that a Trainer trains what ``prepare`` decided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlm_lora_plugin.diagnostics.learning import MOST_SKIPPED, LearningProbe, step_was_skipped
from vlm_lora_plugin.diagnostics.learning_causes import loss_not_finite
from vlm_lora_plugin.documents import differences
from vlm_lora_plugin.errors import TrainingError, listed
from vlm_lora_plugin.frameworks.trainer.fsdp import refuse_fsdp
from vlm_lora_plugin.frameworks.trainer.groups import follow_schedule, verify_optimizer
from vlm_lora_plugin.frameworks.trainer.hooks import install_hooks
from vlm_lora_plugin.frameworks.trainer.in_place import prepare_in_place
from vlm_lora_plugin.frameworks.trainer.output import check_room
from vlm_lora_plugin.frameworks.trainer.whereabouts import Whereabouts
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.prepared.model import VlmLoraPeftModel, find_prepared
from vlm_lora_plugin.recipe import RecipeSource

if TYPE_CHECKING:
    from torch import nn


class VlmLoraCallback(TrainerCallback):
    """Checks that a Trainer trains what ``prepare`` decided, and stops the run otherwise.

    When the Trainer is built it checks the model; on the first step it checks that the optimizer holds exactly
    the parameters of the manifest, in fp32, at the recipe's rates. It changes nothing in a prepared model. FSDP is
    refused at once.

    Then it watches that everything really learns: gradients over the first steps with an image, movement after
    some more (:class:`~vlm_lora_plugin.diagnostics.learning.LearningProbe`). A logged loss or gradient norm that is
    not finite stops the run at any time.

    A plain model it prepares itself, in place, when it has a recipe: the Trainer trains, saves and resumes the
    same as with the model that ``prepare`` returns. Where that cannot be right (DeepSpeed, ``model_init``,
    several GPUs in one process, a quantised or wrapped model) it says to call ``prepare`` first.

    Args:
        recipe: The recipe that the model was, or is to be, prepared with; optional for a prepared model.
        check_learning: False leaves the watching out.
        check_room: False leaves out the check that the checkpoints to come fit on the disk of ``output_dir``.
    """

    def __init__(
        self, recipe: RecipeSource | None = None, *, check_learning: bool = True, check_room: bool = True
    ) -> None:
        install_hooks()
        self._check_room = check_room
        self._recipe = recipe
        self._check_learning = check_learning
        self._verified = False
        self._probe: LearningProbe | None = None
        self._place: Whereabouts | None = None
        self._last_finite = 0

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check the model and the arguments as soon as the Trainer is built; prepare a plain model."""
        refuse_fsdp(args)
        model = kwargs["model"]
        if self._recipe is not None and find_prepared(model) is None:
            prepare_in_place(model, self._recipe, args)
        self._check(args, model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check again: ``model_init`` makes another model for each run."""
        if self._recipe is not None and find_prepared(kwargs["model"]) is None:
            raise TrainingError(
                "The Trainer's model_init made a model that was not prepared",
                why="The callback prepares the model a Trainer is built with; model_init makes another for each run.",
                fix="Let model_init return vlm_lora_plugin.prepare(model, recipe).",
            )
        prepared = self._check(args, kwargs["model"])
        prepared.vlm_lora.steps = state.global_step
        if state.global_step:
            follow_schedule(kwargs.get("lr_scheduler"), kwargs["optimizer"])
        if self._check_room:
            check_room(args, state, kwargs["model"])
        self._verified = False
        self._last_finite = state.global_step
        self._stop_watching()  # what an earlier run that failed has left
        self._place = Whereabouts(kwargs["model"], state)
        if self._check_learning:
            self._probe = LearningProbe(prepared, kwargs["model"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the optimizer once."""
        if not self._verified:
            verify_optimizer(self._check(args, kwargs["model"]), kwargs["optimizer"])
            self._verified = True

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note what the step starts from."""
        if self._place is not None:
            self._place.note("optimizer")
        if self._probe is not None:
            self._probe.before_step(kwargs["optimizer"])

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that everything learns, until it has been seen to."""
        if self._probe is not None:
            self._probe.after_step(skipped=step_was_skipped(kwargs["optimizer"]))
            if self._probe.done:
                self._probe = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the steps, which a checkpoint's manifest tells."""
        prepared = find_prepared(kwargs["model"])
        if prepared is not None:
            prepared.vlm_lora.steps = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Stop a run whose loss or gradient is no longer finite; a loss scale has some steps to recover."""
        wild = [key for key in ("loss", "grad_norm") if not math.isfinite(float((logs or {}).get(key, 0.0)))]
        if "loss" not in (logs or {}) or not wild:
            self._last_finite = state.global_step
        elif not args.fp16 or state.global_step - self._last_finite > MOST_SKIPPED:
            raise loss_not_finite(wild, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the model without hooks."""
        self._stop_watching()

    def _stop_watching(self) -> None:
        if self._place is not None:
            self._place.close()
            self._place = None
        if self._probe is not None:
            self._probe.close()
            self._probe = None

    def _check(self, args: TrainingArguments, model: nn.Module | None) -> VlmLoraPeftModel:
        prepared = find_prepared(model)
        if prepared is None:
            raise TrainingError(
                f"The Trainer's model is a {type(model).__name__} that was not prepared",
                why="No LoRA is in it and nothing says what should learn.",
                fix="Call model = vlm_lora_plugin.prepare(model, recipe) and give that model to the Trainer, "
                "or give the callback a recipe.",
            )
        own = prepared.vlm_lora
        if self._recipe is not None:
            resolved = resolve_recipe(self._recipe, own.family, architecture=own.trainable.architecture)
            self._recipe = wanted = own.effective(resolved)
            found = differences(own.recipe.document(), wanted.document())
            if found:
                raise TrainingError(
                    f"The callback's recipe is not the one the model was prepared with (model / callback): "
                    f"{listed(found)}",
                    fix="Give the same recipe to both, or none to the callback.",
                )
        smoothing = args.label_smoothing_factor
        if smoothing:
            raise TrainingError(
                f"TrainingArguments.label_smoothing_factor is {smoothing}, the recipe's loss has none",
                why="The loss is the model's own: the sum over supervised tokens, divided by their number in the whole "
                "step. Smoothing would replace it by another one, of another scale.",
                fix="Leave label_smoothing_factor out.",
            )
        if args.bf16_full_eval or args.fp16_full_eval:
            raise TrainingError(
                "bf16_full_eval and fp16_full_eval turn the whole model into 16 bit, the recipe's parameters included",
                why="What was trained in fp32 would be rounded for good.",
                fix="Leave them out: a model loaded in 16 bit evaluates under autocast anyway.",
            )
        if own.dtype == torch.float16 and not args.fp16:
            raise TrainingError(
                "The base model is in float16, but TrainingArguments.fp16 is off",
                why="Gradients would underflow without the Trainer's loss scaling.",
                fix="Set fp16=True, or load the model in bfloat16.",
            )
        if own.dtype == torch.bfloat16 and args.fp16:
            raise TrainingError(
                "The base model is in bfloat16, but TrainingArguments.fp16 is on",
                fix="Set bf16=True instead, or load the model in float16.",
            )
        return prepared
