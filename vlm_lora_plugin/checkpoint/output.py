"""The folder that a job's results go to; nothing in it changes before the first training step is done."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from vlm_lora_plugin.checkpoint.completion import set_aside_incomplete
from vlm_lora_plugin.checkpoint.disk import size_of
from vlm_lora_plugin.checkpoint.lock import check_still_held
from vlm_lora_plugin.checkpoint.space import check_names
from vlm_lora_plugin.errors import OutputError, TrainingError, listed

_NOT_EMPTY_OR_GONE = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ENOENT)


LENGTH = ("max_steps", "num_train_epochs")
"""Keys of a recipe's ``training`` that say how long a job is."""


def of_length(differences: Sequence[str]) -> bool:
    """Return whether two recipes differ in nothing but the length of the run: lines of ``documents.differences``."""
    return bool(differences) and all(
        line.startswith(tuple(f"training.{key}: " for key in LENGTH)) for line in differences
    )


class OutputFolder:
    """Results of one job.

    Attributes:
        adapter: What was trained, in PEFT's layout.
        checkpoints: The trainer's ``checkpoint-N`` folders.
        recipe: The resolved recipe.
        sources: Who set each of its values.
        data: Size and digest of the data files.
        log: The log, one JSON object a line.
        loss_picture: The loss over the steps, as PNG.
        rates_picture: Learning rates, tokens and images a second.
        memory_picture: Memory of device and host.
        framework_log: What a framework in a process of its own printed.

    Args:
        folder: May exist; files of other names in it are left alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.adapter = folder / "adapter"
        self.checkpoints = folder / "checkpoints"
        self.recipe = folder / "recipe.yaml"
        self.sources = folder / "sources.json"
        self.data = folder / "data.json"
        self.log = folder / "log.jsonl"
        self.loss_picture = folder / "loss.png"
        self.rates_picture = folder / "rates.png"
        self.memory_picture = folder / "memory.png"
        self.framework_log = folder / "swift.log"
        self.begun = False
        self._missing = [path for path in (self.checkpoints, folder, *folder.parents) if not os.path.exists(path)]

    def check(self, *, overwrite: bool, resume: bool = False) -> None:
        """Refuse a folder that cannot be written to or, unless asked to replace or go on with them, holds results.

        Raises:
            OutputError: It is a file, not writable, or holds results, or its name is too long.
        """
        check_names(self.folder)
        existing = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(
                f"Nothing can be written to {self.folder}: {existing} is "
                f"{'not writable' if existing.is_dir() else 'not a folder'}",
                fix="Give another folder.",
            )
        held = [path.name for path in self._results() if path.is_file() or (path.is_dir() and any(path.iterdir()))]
        if held and not overwrite and not resume:
            raise OutputError(
                f"{self.folder} already holds results: {listed(held)}",
                why="They would be lost.",
                fix="Give another folder, --resume to go on with an interrupted job, or --overwrite to replace them.",
            )

    def begin(self, recipe: str, data: str, sources: str, *, overwrite: bool = True) -> None:
        """Replace old results by the resolved recipe and the record of the data, when the first step is done.

        Args:
            recipe: The recipe as YAML.
            data: The record as JSON.
            sources: Who set each value of the recipe, as JSON.
            overwrite: False refuses, as :meth:`check` did, results that came there since.

        Raises:
            OutputError: The folder is no longer this run's, or holds results, or cannot be written to.
        """
        check_still_held(self.folder)
        if not overwrite:
            self.check(overwrite=False)
        for path in self._results():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data.write_text(data, encoding="utf-8")
        self.sources.write_text(sources, encoding="utf-8")
        self.recipe.write_text(recipe, encoding="utf-8")
        self.begun = True

    def begin_again(self, log: str) -> None:
        """Go on with a job's results; called when the first step is done.

        Args:
            log: The log up to the checkpoint that the job goes on from; what was logged later comes once more.
        """
        check_still_held(self.folder)
        set_aside_incomplete(self.checkpoints)  # newer ones than the job goes on from: it writes them again
        temporary = self.folder / ".log.partial"
        temporary.write_text(log, encoding="utf-8")
        os.replace(temporary, self.log)
        self.begun = True

    def lengthen(self, recipe: str, sources: str) -> None:
        """Write the recipe of a finished job that is trained longer; called when the first new step is done."""
        for path, text in ((self.sources, sources), (self.recipe, recipe)):
            temporary = path.with_name(f".{path.name}.partial")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)

    def save_adapter(self, save: Callable[[Path], None]) -> None:
        """Let ``save`` write the adapter into a temporary folder, then put it in its place in one step.

        The adapter of an earlier end of the same job is replaced.

        Raises:
            OutputError: The folder is no longer this run's.
            TrainingError: Nothing was written.
        """
        check_still_held(self.folder)
        temporary = self.folder / ".adapter.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            save(temporary)
            if not temporary.is_dir() or not any(temporary.iterdir()):
                raise TrainingError("The adapter was not saved: nothing was written")
            shutil.rmtree(self.adapter, ignore_errors=True)
            os.replace(temporary, self.adapter)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def abandon(self) -> None:
        """Remove the empty folders that were made for a job that failed before its first step was done."""
        if not self.begun:
            for path in self._missing:
                try:
                    path.rmdir()
                except OSError as error:
                    # Something is in it, or it is not there: another process of the job may be a moment ahead.
                    if error.errno not in _NOT_EMPTY_OR_GONE:
                        raise

    def _results(self) -> tuple[Path, ...]:
        texts = (self.recipe, self.sources, self.data, self.log, self.framework_log)
        return (self.adapter, self.checkpoints, *texts, *self.pictures)

    @property
    def held_bytes(self) -> int:
        """Bytes of the results that are there."""
        return sum(size_of(path) for path in self._results())

    @property
    def pictures(self) -> tuple[Path, ...]:
        """The pictures that a finished job leaves."""
        return (self.loss_picture, self.rates_picture, self.memory_picture)
