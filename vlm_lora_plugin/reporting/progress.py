"""What a person sees while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlm_lora_plugin.reporting.log import is_result

_LINES = 20  # printed in all, where there is no terminal to draw a bar on
_LONGEST = 60.0
"""Seconds without a line, after which one is printed before its turn; it doubles each time."""


class ConsoleProgress(TrainerCallback):
    """A bar on a terminal; elsewhere lines.

    The first comes after the first step, then about twenty for the whole run and one for each evaluation. Where steps
    are so slow that these would be minutes apart, some come between them.

    Args:
        console: Where to show it.
        clock: Returns seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._bar: Progress | None = None
        self._printed: int | None = None  # the step of the last line
        self._said_at, self._patience = 0.0, _LONGEST
        self._shown = {"loss": float("nan")}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar."""
        self._said_at = self._clock()
        if not self._console.is_terminal or not state.is_world_process_zero:
            return
        columns = (MofNCompleteColumn(), TextColumn("steps"), BarColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
        self._bar.add_task("", total=state.max_steps)
        self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar, or say that the run goes on where no loss of this step is about to be logged."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=state.global_step)
            return
        silent = state.is_world_process_zero and not control.should_log and state.global_step != self._printed
        if silent and (self._printed is None or self._is_late()):
            self._print(state, "")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the latest losses."""
        new = {key: float(value) for key, value in (logs or {}).items() if key == "loss" or is_result(key)}
        if not new or not state.is_world_process_zero:
            return
        self._shown.update(new)
        known = {key: value for key, value in self._shown.items() if value == value}
        if self._bar is not None:
            text = "  ".join(f"{key} {value:.4f}" for key, value in known.items())
            self._bar.update(self._bar.task_ids[0], description=text)
            return
        text = "  ".join(f"{key} {value:.4f}" for key, value in new.items())
        if any(map(is_result, new)):
            self._console.print(f"step {state.global_step}/{state.max_steps}  {text}", highlight=False)
        elif self._is_due(state) or self._is_late():
            self._print(state, text)

    def _is_due(self, state: TrainerState) -> bool:
        """Return whether a twentieth of the run has passed since the last line, or there was none."""
        return self._printed is None or state.global_step - self._printed >= state.max_steps / _LINES

    def _is_late(self) -> bool:
        return self._clock() - self._said_at >= self._patience

    def _print(self, state: TrainerState, text: str) -> None:
        if self._is_late():
            self._patience *= 2
        self._printed, self._said_at = state.global_step, self._clock()
        self._console.print(f"step {state.global_step}/{state.max_steps}  {text}".rstrip(), highlight=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the bar as it is."""
        self.close()

    def close(self) -> None:
        """Stop drawing, also after a failure."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
