"""What a family plugin says about itself: everything about a model family that is data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.contract.processor import Processor
from vlm_lora_plugin.contract.sizes import ModelSize
from vlm_lora_plugin.vocabulary import Component

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from vlm_lora_plugin.contract.architecture import Architecture
    from vlm_lora_plugin.contract.example import Example
    from vlm_lora_plugin.recipe import Recipe


@dataclass(frozen=True)
class ProcessorOption:
    """A whole number that users may set as ``data.processor.<name>`` in a recipe.

    The processor has its value as an attribute of the same name.

    Attributes:
        name: The key.
        description: What it does, for tables.
        least: The smallest value allowed.
    """

    name: str
    description: str
    least: int = 1


@dataclass(frozen=True)
class MixturePart:
    """One file of a mixture, and how many of its rows one epoch has.

    Attributes:
        file: The data file.
        rows: Rows drawn from it: without repetition up to all of them, more by drawing again.
        origin: Where the mixture says so, ``data.txt:2``, for error messages.
    """

    file: Path
    rows: int
    origin: str


@dataclass(frozen=True)
class LoadRequest:
    """What :func:`vlm_lora_plugin.load` asks of a family's loader.

    Attributes:
        folder: A model folder on disk, already recognised as the family's.
        dtype: The wanted parameter dtype, or None for the one the config names.
        device: ``"cpu"``, ``"cuda"``, or ``"meta"`` for a model without weights (``inspect`` uses it).
        seed: Seed of the keyed initialisation of LoRA that the checkpoint lacks.
        variant: One of the family's ``variants``, where neither the config nor weights say which one it is;
            None leaves the choice to the loader.
        with_processor: Whether a processor is wanted. If not, the folder may hold ``config.json`` alone, and
            the loader may return None in its place.
        processor: The recipe's ``data.processor``, checked against the family's ``processor_options``.
    """

    folder: Path
    dtype: torch.dtype | None = None
    device: str = "cpu"
    seed: int = 42
    variant: str | None = None
    with_processor: bool = True
    processor: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GoldenCase:
    """One folder of reference numbers, turned into our model and inputs by a family's reader.

    Attributes:
        model: The freshly built model, dropout off, in the case's mode (train or eval), without its weights.
        weights: The file whose tensors are loaded strictly.
        inputs: Keyword arguments of ``model.forward``, labels included.
        stages: Runs ``model(**inputs)`` once and returns its output and the tensors of the stages named.
        recipes: Upstream's recipe name -> the recipe of ours that must give the same trainable names.
        rtol: Relative tolerance that the family's README states.
        atol: Absolute tolerance that the family's README states.
    """

    model: PreTrainedModel
    weights: Path
    inputs: Mapping[str, Any]
    stages: Callable[[PreTrainedModel, Mapping[str, Any], Sequence[str]], tuple[Any, dict[str, torch.Tensor]]]
    recipes: Mapping[str, Recipe]
    rtol: float = 1e-5
    atol: float = 1e-6


@dataclass(frozen=True)
class Family:
    """Everything about a model family that is data; the other hooks are its behaviour.

    Attributes:
        name: The entry point's name, lower case: ``monkey``.
        title: What people call it: ``Monkey``.
        model_types: The ``model_type`` values of configs of this family's classes.
        components: Its parts; every parameter belongs to exactly one.
        presets: Recipe documents by name, each the mapping that a YAML recipe would hold.
        default_preset: The one used when the user names none.
        recognises: Whether a model folder is this family's, judged by content (config keys, tensor names),
            never by running code from it.
        load: Builds model and processor from a folder without remote code.
        architecture: What a model of the family is made of. It is given a model, loaded or on the meta device; a
            family that knows its answer reads ``model.config`` alone. ``"module:function"`` is allowed.
        fallback: Whether the family is asked only where no other one recognises a folder or owns a model.
        variants: Names of architectures that one ``config.json`` can stand for, the common one first; empty
            where the config says everything.
        fixed_tables: Regular expressions for whole names of parameters that are computed tables. They stay
            frozen unless the recipe sets ``train_fixed_tables``.
        parse_record: Reads one row of the family's own data format into an Example, or returns None when
            the row is not in it. The common ``messages``/``images`` rows never get here.
        read_golden_case: Reads a folder of reference numbers, or returns None when the folder is another
            family's.
        auto_modules: Modules that register this family's own model types with transformers' auto classes when
            they are imported. That happens by itself once ``AutoModelForCausalLM`` is imported.
        size: The published model's sizes, from which hardware tiers are chosen before a model is at hand; None
            leaves the choice to rules that need no sizes.
        processor_options: What a recipe may set in ``data.processor``.
        read_mixture: Reads a file that names data files and how much of each to train on, or returns None when
            the file is no such mixture but data itself.
        swift_model_types: Model types that ms-swift itself has for this family's checkpoints and that the
            family takes over there, because Swift's own cannot work.
        advise: What ``inspect`` says about a resolved recipe beside its numbers, one sentence or two a line.
        demo: A folder-building function for ``vlm-lora train --demo``: writes a tiny model of this family, and
            may return a recipe document that is laid over the demo's own settings.
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    components: tuple[Component, ...]
    presets: Mapping[str, Mapping[str, Any]]
    default_preset: str
    recognises: Callable[[Path], bool]
    load: Callable[[LoadRequest], tuple[PreTrainedModel, Processor | None]]
    architecture: Callable[[PreTrainedModel], Architecture] | str
    fallback: bool = False
    variants: tuple[str, ...] = ()
    fixed_tables: tuple[str, ...] = ()
    parse_record: Callable[[Mapping[str, Any], Path, str], Example | None] | None = None
    read_golden_case: Callable[[Path], GoldenCase | None] | None = None
    auto_modules: tuple[str, ...] = ()
    size: ModelSize | None = None
    processor_options: tuple[ProcessorOption, ...] = ()
    read_mixture: Callable[[Path], Sequence[MixturePart] | None] | None = None
    swift_model_types: tuple[str, ...] = ()
    advise: Callable[[Recipe], Sequence[str]] | None = None
    demo: Callable[[Path], Mapping[str, Any] | None] | None = None
