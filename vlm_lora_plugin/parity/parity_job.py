"""What is compared, and what became of it in one framework."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlm_lora_plugin.data.first_rows import file_and_count
from vlm_lora_plugin.documents import merge
from vlm_lora_plugin.errors import DataError, HardwareError
from vlm_lora_plugin.outside.files import why_unusable

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.planning.dtypes import DtypeName
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe
    from vlm_lora_plugin.recipe import RecipeSource

Framework = Literal["trainer", "swift"]
EVERY_STEP = {"training": {"logging_steps": 1}}
"""What is compared is logged at every step."""

FRAMEWORKS: tuple[Framework, ...] = ("trainer", "swift")


@dataclass(frozen=True)
class ParityJob:
    """One job that both frameworks are given.

    Attributes:
        model: A model folder.
        data: The training data, JSONL or JSON.
        output: The folder that records, adapters and the picture go to.
        val_data: Data to evaluate on, or None.
        recipe: A recipe in any form, or None for the family's default preset.
        overrides: A document laid over the recipe.
        dtype: Dtype of the frozen weights.
        processes: Processes of each framework; more than one talk through gloo on a CPU.
        resume: A checkpoint that each framework goes on from, or None.
    """

    model: Path
    data: Path
    output: Path
    val_data: Path | None = None
    recipe: RecipeSource | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    dtype: DtypeName = "fp32"
    processes: int = 1
    resume: Path | None = None

    def check(self) -> tuple[Family, ResolvedRecipe]:
        """Check model folder, recipe and data files.

        Returns:
            Whose model it is, and the resolved recipe; every step of it is logged.

        Raises:
            ModelError: The folder is of no known family.
            RecipeError: The recipe has an unknown key, value or preset.
            DataError: A data file is missing.
            HardwareError: The recipe shards the model, which is not compared.
        """
        from vlm_lora_plugin.job.train_job import recognise

        family, recipe = recognise(self.model, self.recipe, merge(self.overrides, EVERY_STEP))
        for file in (self.data, self.val_data):
            if file is not None and (problem := why_unusable(file_and_count(file)[0])):
                raise DataError(
                    f"There is no data file {file}: {problem}", fix="Give the path of a JSONL or JSON file."
                )
        if recipe.hardware is not None and recipe.hardware.zero_stage:
            raise HardwareError(
                f"The recipe trains under ZeRO-{recipe.hardware.zero_stage}, and parity compares without DeepSpeed",
                why="Its processes talk through gloo, on any machine.",
                fix="--set hardware=null compares what else the recipe says; --processes N compares N processes.",
            )
        return family, recipe


@dataclass(frozen=True)
class Side:
    """What a framework is asked to do, and where it leaves what.

    Attributes:
        framework: Which one.
        folder: Its own folder; all below lies in it.
    """

    framework: Framework
    folder: Path

    @property
    def records(self) -> Path:
        """The recorder's files, one a process."""
        return self.folder / "record"

    @property
    def checkpoints(self) -> Path:
        """The framework's ``checkpoint-N`` folders."""
        return self.folder / "checkpoints"

    @property
    def printed(self) -> Path:
        """What the framework printed."""
        return self.folder / "printed.log"


@dataclass(frozen=True)
class TrainerTask:
    """What the process of the Trainer is given, as a JSON file.

    Attributes:
        model: The model folder.
        data: The training data.
        val_data: The validation data, or None.
        recipe: The resolved recipe's document.
        dtype: Name of the frozen weights' dtype, ``bfloat16``.
        folder: The side's folder.
        resume: A checkpoint to go on from, or None.
        gloo: Whether processes talk through gloo.
    """

    model: str
    data: str
    val_data: str | None
    recipe: Mapping[str, Any]
    dtype: str
    folder: str
    resume: str | None
    gloo: bool

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(vars(self)), "utf-8")

    @classmethod
    def read(cls, file: Path) -> TrainerTask:
        """Read what :meth:`write` wrote."""
        return cls(**json.loads(file.read_text("utf-8")))
