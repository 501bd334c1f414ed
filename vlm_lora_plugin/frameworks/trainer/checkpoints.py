"""A Trainer's checkpoints: complete, or recognised as incomplete and never resumed from; on all ranks the same.

No callback runs between ``Trainer.train`` and its choice of a checkpoint, nor before its engine is made, old
checkpoints are deleted before ``on_save``, and a run that is resumed from its last step takes another one before it
looks whether it is over. :mod:`vlm_lora_plugin.frameworks.trainer.hooks` wraps these methods and calls what is here.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm_lora_plugin.checkpoint.completion import (
    check_complete,
    check_resumable,
    read_parallel_layout,
    record_completion,
    set_aside_incomplete,
)
from vlm_lora_plugin.checkpoint.files import MANIFEST, TRAINER_WEIGHTS
from vlm_lora_plugin.checkpoint.hints import refuse_adapter
from vlm_lora_plugin.checkpoint.load import check_fits, take_history
from vlm_lora_plugin.checkpoint.manifest_file import read_manifest
from vlm_lora_plugin.checkpoint.resume_state import SCALE, lacking
from vlm_lora_plugin.documents import differences
from vlm_lora_plugin.errors import CheckpointError, listed
from vlm_lora_plugin.frameworks.trainer.parallel_layout import ParallelLayout
from vlm_lora_plugin.outside.display import safe
from vlm_lora_plugin.parallel.agreement import done_by_some, ranks_of_this_node
from vlm_lora_plugin.prepared.model import find_prepared

if TYPE_CHECKING:
    from transformers import Trainer

    from vlm_lora_plugin.prepared.model import VlmLoraPeftModel
    from vlm_lora_plugin.selection.manifest import Manifest

_logger = logging.getLogger(__name__)


def complete_checkpoint(trainer: Trainer, trial: Any) -> None:
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
            why="It saved the model in a way of its own, from which no adapter can be loaded.",
            fix="Train with DistributedDataParallel or DeepSpeed.",
        )
    record = record_completion(checkpoint, asdict(ParallelLayout.of(trainer)))
    missing = [] if trainer.args.save_only_model else lacking(record.resume)
    if trainer.accelerator.scaler is not None and not trainer.args.save_only_model and SCALE not in record.resume:
        missing.append(SCALE)
    if missing:
        raise CheckpointError(
            f"{checkpoint} lacks what a resume needs, right after it was saved: {', '.join(missing)}",
            why="Something else changes the folder while the run writes to it.",
            fix="Give the run an output folder of its own.",
        )
    rotate_checkpoints(
        output_dir=folder,
        save_total_limit=trainer.args.save_total_limit,
        best_model_checkpoint=trainer.state.best_model_checkpoint,
        use_mtime=True,
    )


def check_resumed(trainer: Trainer, wanted: str | bool) -> str | None:
    """Set incomplete checkpoints aside, and refuse a checkpoint that cannot be resumed from.

    Returns:
        The checkpoint that will be resumed from; None when there is none.

    Raises:
        CheckpointError: The checkpoint that was named is incomplete, or the one that will be resumed from
            holds no optimizer, or belongs to another base model or recipe.
    """
    from transformers.trainer_utils import get_last_checkpoint

    output = Path(str(trainer.args.output_dir))
    if wanted is True:
        done_by_some(partial(_pass_over_incomplete, output), acts=trainer.args.should_save)
        last = get_last_checkpoint(output) if output.is_dir() else None
    else:
        last = str(wanted)
        refuse_adapter(last)
        done_by_some(partial(check_complete, last), acts=ranks_of_this_node()[0] == 0)  # one reads its files
    prepared = find_prepared(trainer.model)
    if last is None or prepared is None:
        return None
    check_resumable(last)
    stored = read_manifest(last)
    check_fits(prepared, stored, last)
    _check_same_optimizer(prepared, stored, last)
    _check_same_parallel_layout(trainer, last)
    if trainer.model is not prepared and not (Path(last) / TRAINER_WEIGHTS).is_file():
        raise CheckpointError(
            f"{last} has no {TRAINER_WEIGHTS}: it was saved by a model that prepare returned",
            why="The Trainer cannot load it into the plain model that the callback prepared in place.",
            fix="Call model = vlm_lora_plugin.prepare(model, recipe) and give that model to the Trainer.",
        )
    take_history(prepared, stored)
    return str(last)


def _pass_over_incomplete(output: Path) -> None:
    for path, problem in set_aside_incomplete(output).items():
        _logger.warning("%s is an incomplete checkpoint (%s) and is passed over", path, safe(problem))


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


def _check_same_parallel_layout(trainer: Trainer, checkpoint: str) -> None:
    """Refuse to go on with another number of processes or another ZeRO stage than a checkpoint was written with.

    Raises:
        CheckpointError: They differ.
    """
    written = read_parallel_layout(checkpoint)
    own = ParallelLayout.of(trainer)
    if written in (None, asdict(own)):
        return
    raise CheckpointError(
        f"{checkpoint} was written by {ParallelLayout(**written)}; {own} would go on from it",
        why="AdamW's and the random states lie in it as shards, one a process, cut as the ZeRO stage cuts them; "
        "others would lose them, and see other rows.",
        fix="Go on as it was begun. Or start anew from its weights: model.load_adapter(checkpoint, is_trainable=True), "
        "and train() without resume_from_checkpoint; in ms-swift --adapters in place of --resume_from_checkpoint.",
    )


def _wait() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
