"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm_lora_plugin.cli.failure import remember_traceback

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vlm_lora_plugin.planning.dtypes import DtypeName


COMMAND_LINE = "vlm_lora.command_line"
"""Key of the context's ``meta`` that holds the arguments as they were typed."""


class Dtype(str, Enum):
    """Parameter dtypes that a model can be loaded in."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Framework(str, Enum):
    """What can train."""

    trainer = "trainer"
    swift = "swift"


class BadSample(str, Enum):
    """What happens to a row that cannot be used."""

    error = "error"
    skip = "skip"


TakeOverOption = Annotated[
    bool,
    typer.Option("--take-over", help="Take the output folder from another run that seems to be at work in it."),
]
TracebackOption = Annotated[
    bool,
    typer.Option(
        "--traceback",
        envvar="VLM_LORA_TRACEBACK",
        callback=remember_traceback,
        help="Show errors with their traceback.",
    ),
]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", "-r", help="A recipe in a YAML file.")]
PresetOption = Annotated[str | None, typer.Option("--preset", "-p", help="A preset of the model's family.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change one key of the recipe; may be given again."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
VariantOption = Annotated[
    str | None, typer.Option("--variant", help="The family's variant, where the config does not say.")
]
DtypeOption = Annotated[
    Dtype | None, typer.Option("--dtype", help="Dtype of the frozen weights; trainable ones are fp32.")
]

BadSampleOption = Annotated[
    BadSample | None,
    typer.Option("--on-bad-sample", help="Stop at rows that cannot be used (default), or skip and count them."),
]
CheckImagesOption = Annotated[
    bool, typer.Option("--check-images/--no-check-images", help="Decode every image once, not its header alone.")
]
OutsideImagesOption = Annotated[
    bool, typer.Option("--allow-outside-images", help="Allow image files outside the data file's folder.")
]


def data_assignments(on_bad_sample: BadSample | None, allow_outside_images: bool) -> list[str]:
    """Return the recipe's assignments that the two options stand for."""
    bad = [] if on_bad_sample is None else [f"data.on_bad_sample={on_bad_sample.value}"]
    return [*bad, *(["data.allow_outside_images=true"] if allow_outside_images else [])]


def overrides(
    assignments: list[str] | None, preset: str | None, max_steps: int | None = None, metric: str | None = None
) -> dict[str, Any]:
    """Return the document that the command line lays over the recipe; an option wins over ``--set``.

    Raises:
        RecipeError: An assignment is no ``key=value``.
    """
    from vlm_lora_plugin.recipe import parse_assignments

    steps = [] if max_steps is None else [f"training.max_steps={max_steps}"]
    measured = [] if metric is None else [f"evaluation.metric={metric}"]
    document = parse_assignments([*(assignments or ()), *steps, *measured])
    return document if preset is None else {**document, "preset": preset}


def with_hardware(document: dict[str, Any], short: str | None, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the command line lays over the recipe, with the machine that its options name.

    Args:
        document: What it lays over besides.
        short: ``--hardware``, ``3x24``.
        machine: Single values by the recipe's keys below ``hardware``; None for those that were not given.

    Raises:
        HardwareError: The short form is none.
    """
    from vlm_lora_plugin.hardware import parse_hardware

    given = {key: value for key, value in machine.items() if value is not None}
    if short is not None:
        parsed = parse_hardware(short)
        for key in ("gpus", "gpu_memory"):
            if key in given and given[key] != getattr(parsed, key):
                name = f"--{key.replace('_', '-')}"
                raise typer.BadParameter(f"{name} {given[key]:g} contradicts it", param_hint=f"--hardware {short}")
        given |= {"gpus": parsed.gpus, "gpu_memory": parsed.gpu_memory}
    before = document.get("hardware") or {}
    if isinstance(before, str):  # --set hardware=3x24
        parsed = parse_hardware(before)
        before = {"gpus": parsed.gpus, "gpu_memory": parsed.gpu_memory}
    whole = {**before, **given}
    return {**document, "hardware": whole} if whole else document


def name_of(dtype: Dtype | None) -> DtypeName | None:
    """Return the name behind the option."""
    return None if dtype is None else dtype.value
