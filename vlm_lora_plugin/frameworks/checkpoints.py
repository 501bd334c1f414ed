"""A Trainer's checkpoints: complete, or recognised as incomplete and never resumed from; on all ranks the same.

No callback runs between ``Trainer.train`` and its choice of a checkpoint, nor before its engine is made, old
checkpoints are deleted before ``on_save``, and a run that is resumed from its last step takes another one before it
looks whether it is over. So ``train``, ``save_model``, ``_save_checkpoint`` and ``_run_epoch`` are wrapped once for
the whole process, and act only on models that ``prepare`` returned.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm_lora_plugin.checkpoint.completion import (
    check_complete,
    read_division,
    record_completion,
    set_aside_incomplete,
)
from vlm_lora_plugin.checkpoint.files import MANIFEST, TRAINER_WEIGHTS
from vlm_lora_plugin.checkpoint.load import check_fits, read_manifest
from vlm_lora_plugin.errors import CheckpointError, listed
from vlm_lora_plugin.frameworks.groups import find_prepared
from vlm_lora_plugin.frameworks.together import Division, common_ground
from vlm_lora_plugin.selection.manifest import differences
from vlm_lora_plugin.zero.agreement import check_ranks_agree, check_same_checkpoint, several_ranks
from vlm_lora_plugin.zero.order import check_loaded_in_parts
from vlm_lora_plugin.zero.partition import whole_values

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer

    from vlm_lora_plugin.prepared_model import VlmLoraPeftModel
    from vlm_lora_plugin.selection.manifest import Manifest

_MARK = "_vlm_lora_checkpoints"
_logger = logging.getLogger(__name__)


def install_checkpoints() -> None:
    """Wrap ``transformers.Trainer``'s saving, the start of its ``train`` and its epochs; a second call changes nothing.

    Before anything is trained, the ranks then agree on what that is.
    """
    from transformers import Trainer

    save, train, save_model = Trainer._save_checkpoint, Trainer.train, Trainer.save_model
    run_epoch = Trainer._run_epoch
    if getattr(save, _MARK, False):
        return

    @wraps(save)
    def _save_checkpoint(self: Trainer, model: nn.Module, trial: Any) -> None:
        if find_prepared(self.model) is None:
            save(self, model, trial)
            return
        limit = self.args.save_total_limit
        self.args.save_total_limit = None  # the last complete checkpoint is needed until this one is
        try:
            save(self, model, trial)
        finally:
            self.args.save_total_limit = limit
        _complete(self, trial)

    @wraps(save_model)
    def save_trainables(self: Trainer, output_dir: str | None = None, _internal_call: bool = False) -> None:
        prepared = find_prepared(self.model)
        if prepared is None or not self.is_deepspeed_enabled:
            save_model(self, output_dir, _internal_call)
            return
        # The Trainer would gather the frozen weights too, in the stage's own dtype.
        tensors = whole_values(prepared.named_trainables(), keep=self.args.should_save)
        if self.args.should_save:
            self._save(output_dir, state_dict=tensors)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    @wraps(train)
    def train_together(
        self: Trainer, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        prepared = find_prepared(self.model)
        if prepared is not None:
            if several_ranks():
                resumes = {"resume_from_checkpoint": bool(resume_from_checkpoint)}
                check_ranks_agree(prepared.vlm_lora.manifest, **common_ground(self), **resumes)
            check_loaded_in_parts(prepared)
            if resume_from_checkpoint:
                check_same_checkpoint(_check_resumed(self, resume_from_checkpoint))
        return train(self, resume_from_checkpoint, *args, **kwargs)

    @wraps(run_epoch)
    def run_epoch_unless_over(self: Trainer, *args: Any, **kwargs: Any) -> None:
        if find_prepared(self.model) is not None and self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        run_epoch(self, *args, **kwargs)  # type: ignore[no-untyped-call]

    setattr(_save_checkpoint, _MARK, True)
    Trainer._run_epoch = run_epoch_unless_over  # type: ignore[method-assign]
    Trainer._save_checkpoint = _save_checkpoint  # type: ignore[method-assign]
    Trainer.save_model = save_trainables  # type: ignore[method-assign]
    Trainer.train = train_together  # type: ignore[method-assign]


def _complete(trainer: Trainer, trial: Any) -> None:
    """Record that a checkpoint is complete, then delete those beyond the limit."""
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

    _wait()  # other processes write their random states into the same folder
    if not trainer.args.should_save:
        return
    folder = trainer._get_output_dir(trial=trial)
    checkpoint = Path(folder) / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    if not (checkpoint / MANIFEST).is_file():
        raise CheckpointError(
            f"The Trainer wrote {checkpoint} without what was trained",
            why="It saved the model in a way of its own (FSDP does), from which no adapter can be loaded.",
            fix="Train with DistributedDataParallel or DeepSpeed, or with FSDP's FULL_STATE_DICT.",
        )
    record_completion(checkpoint, asdict(Division.of(trainer)))
    rotate_checkpoints(
        output_dir=folder,
        save_total_limit=trainer.args.save_total_limit,
        best_model_checkpoint=trainer.state.best_model_checkpoint,
        use_mtime=True,
    )


def _check_resumed(trainer: Trainer, wanted: str | bool) -> str | None:
    """Set incomplete checkpoints aside, and refuse a checkpoint that cannot be resumed from.

    Returns:
        The checkpoint that will be resumed from; None when there is none.

    Raises:
        CheckpointError: The checkpoint that was named is incomplete, or the one that will be resumed from
            belongs to another base model or recipe.
    """
    from transformers.trainer_utils import get_last_checkpoint

    output = Path(str(trainer.args.output_dir))
    if wanted is True:
        if trainer.args.should_save:
            for path, problem in set_aside_incomplete(output).items():
                _logger.warning("%s is an incomplete checkpoint (%s) and is passed over", path, problem)
        _wait()
        last = get_last_checkpoint(output) if output.is_dir() else None
    else:
        last = str(wanted)
        check_complete(last)
    prepared = find_prepared(trainer.model)
    if last is None or prepared is None:
        return None
    stored = read_manifest(last)
    check_fits(prepared, stored, last)
    _check_same_optimizer(prepared, stored, last)
    _check_same_division(trainer, last)
    if trainer.model is not prepared and not (Path(last) / TRAINER_WEIGHTS).is_file():
        raise CheckpointError(
            f"{last} has no {TRAINER_WEIGHTS}: it was saved by a model that prepare returned",
            why="The Trainer cannot load it into the plain model that the callback prepared in place.",
            fix="Call model = vlm_lora_plugin.prepare(model, recipe) and give that model to the Trainer.",
        )
    return str(last)


def _check_same_optimizer(prepared: VlmLoraPeftModel, stored: Manifest, checkpoint: str) -> None:
    """Refuse other rates than the checkpoint's: its optimizer and schedule bring the old ones back.

    Raises:
        CheckpointError: They differ; shows both, key by key.
    """
    own = prepared.vlm_lora.manifest.recipe
    found = differences(stored.recipe.get("optimizer"), own.get("optimizer"), "optimizer")
    if found:
        raise CheckpointError(
            f"{checkpoint} was trained with another optimizer (checkpoint / recipe): {listed(found)}",
            why="A resumed run goes on with the checkpoint's rates, so the recipe's would be ignored.",
            fix="Resume with the recipe in the checkpoint's manifest; or start anew from its weights: "
            "model.load_adapter(checkpoint, is_trainable=True), and train() without resume_from_checkpoint.",
        )


def _check_same_division(trainer: Trainer, checkpoint: str) -> None:
    """Refuse to go on with another number of processes or another ZeRO stage than a checkpoint was written with.

    Raises:
        CheckpointError: They differ.
    """
    written = read_division(checkpoint)
    own = Division.of(trainer)
    if written in (None, asdict(own)):
        return
    raise CheckpointError(
        f"{checkpoint} was written by {Division(**written)}; {own} would go on from it",
        why="AdamW's and the random states lie in it in parts, one a process, cut as the ZeRO stage cuts them; others "
        "would lose them, and see other rows.",
        fix="Go on as it was begun. Or start anew from its weights: model.load_adapter(checkpoint, is_trainable=True), "
        "and train() without resume_from_checkpoint; in ms-swift --adapters in place of --resume_from_checkpoint.",
    )


def _wait() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
