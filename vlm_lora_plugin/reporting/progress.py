"""What a person sees while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlm_lora_plugin.reporting.log import is_result

_LINES = 20  # printed in all, where there is no terminal to draw a bar on


class ConsoleProgress(TrainerCallback):
    """A bar on a terminal; elsewhere about twenty lines for the whole run, and one for each evaluation.

    Args:
        console: Where to show it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._printed = 0
        self._shown = {"loss": float("nan")}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar."""
        if not self._console.is_terminal or not state.is_world_process_zero:
            return
        columns = (MofNCompleteColumn(), TextColumn("steps"), BarColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
        self._bar.add_task("", total=state.max_steps)
        self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=state.global_step)

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
        elif any(map(is_result, new)) or state.global_step - self._printed >= state.max_steps / _LINES:
            if "loss" in new:
                self._printed = state.global_step
            text = "  ".join(f"{key} {value:.4f}" for key, value in new.items())
            self._console.print(f"step {state.global_step}/{state.max_steps}  {text}", highlight=False)

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
