"""A Trainer's output folder: one run at a time in it, and nothing half-written where it cannot be written to."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vlm_lora_plugin.checkpoint.completion import why_incomplete
from vlm_lora_plugin.checkpoint.disk import size_of, writing
from vlm_lora_plugin.checkpoint.lock import LOCK, FolderLock, check_still_held, lock_around
from vlm_lora_plugin.checkpoint.space import Saves, check_space
from vlm_lora_plugin.errors import OutputError
from vlm_lora_plugin.parallel.agreement import done_by_some
from vlm_lora_plugin.parallel.sharding import full_numel

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer, TrainerState, TrainingArguments


@contextmanager
def locked_output(trainer: Trainer) -> Iterator[None]:
    """Hold a lock on a Trainer's output folder while it trains, on its first process; a job has one around it already.

    Raises:
        OutputError: Another run is at work in it; raised on all ranks alike.
    """
    folder = Path(str(trainer.args.output_dir))
    acts = trainer.is_world_process_zero() and lock_around(folder) is None
    with ExitStack() as held:

        def lock() -> None:
            held.enter_context(FolderLock(folder / LOCK, folder))

        done_by_some(lock, acts=acts)
        yield


@contextmanager
def whole_checkpoint(trainer: Trainer, trial: Any) -> Iterator[None]:
    """While a checkpoint is saved: one that the disk does not take is removed again.

    Raises:
        OutputError: It cannot be written, or the folder is another run's by now.
    """
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    if trainer.args.should_save:
        check_still_held(str(trainer.args.output_dir))
    folder = Path(trainer._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    try:
        with writing(folder, saves_of(trainer.args, trainer.state, cast("nn.Module", trainer.model)).checkpoint):
            yield
    except OutputError:
        if trainer.args.should_save and folder.is_dir() and why_incomplete(folder, contents=False) is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def saves_of(args: TrainingArguments, state: TrainerState, model: nn.Module) -> Saves:
    """Return what a run is going to write, once its number of steps is known."""
    elements = sum(full_numel(parameter) for parameter in model.parameters() if parameter.requires_grad)
    every = 0.0
    if args.save_strategy == "steps":
        every = state.save_steps or args.save_steps
    elif args.save_strategy == "epoch" and state.num_train_epochs:
        every = state.max_steps / state.num_train_epochs
    steps = math.ceil(every) if every >= 1 else math.ceil(every * state.max_steps)
    name = getattr(args.optim, "value", str(args.optim))
    return Saves(elements, name, state.max_steps, steps, args.save_total_limit, states=not args.save_only_model)


def check_room(args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
    """Refuse a run whose checkpoints are not going to fit; see :func:`check_space`.

    Raises:
        OutputError: Says what is needed and what is free.
    """
    if state.is_world_process_zero:
        folder = Path(str(args.output_dir))
        check_space(folder, saves_of(args, state, model), there=sum(size_of(path) for path in folder.glob("*")))
