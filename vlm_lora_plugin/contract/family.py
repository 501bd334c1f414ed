"""What a family plugin says about itself: who it is, and the functions that answer for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.contract.options import OptionValue, ProcessorOption
from vlm_lora_plugin.contract.processor import Processor
from vlm_lora_plugin.contract.sizes import ModelSize

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from vlm_lora_plugin.contract.architecture import Architecture
    from vlm_lora_plugin.contract.example import Example
    from vlm_lora_plugin.contract.golden import GoldenCase
    from vlm_lora_plugin.recipe import Recipe


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
    """What is asked of a family's ``load_model`` and ``load_processor``.

    Attributes:
        folder: A model folder on disk, already recognised as the family's. For a model on the meta device it may
            hold ``config.json`` alone.
        dtype: The wanted parameter dtype, or None for the one the config names.
        device: ``"cpu"``, ``"cuda"``, or ``"meta"`` for a model without weights (``inspect`` uses it).
        seed: Seed of the keyed initialisation of LoRA that the checkpoint lacks.
        variant: One of the family's ``variants``, where neither the config nor weights say which one it is;
            None leaves the choice to the loader.
        processor: The recipe's ``data.processor``, checked against the family's ``processor_options``.
        exif_transpose: The recipe's ``data.exif_transpose``. The core sets it on the processor that is made, as an
            attribute of the same name, which ``EncodingProcessor`` and ``ChatTemplateProcessor`` have.
    """

    folder: Path
    dtype: torch.dtype | None = None
    device: str = "cpu"
    seed: int = 42
    variant: str | None = None
    processor: Mapping[str, OptionValue] = field(default_factory=dict)
    exif_transpose: bool = False


@dataclass(frozen=True)
class DataFormats:
    """The data forms of a family's own, beside the common ``messages``/``images`` rows.

    Attributes:
        parse_record: Reads one row of the family's own form into an Example, or returns None when the row is not
            in it. Given the row, the folder that relative image paths start at, and the row's name for errors. A key
            that it does not look at makes the row a bad one, see ``docs/reference/rows.md``; ``system`` and the loss
            marks of the turns in ``conversations`` are taken off before and put back by the core.
        read_mixture: Reads a file that names data files and how much of each to train on, or returns None when
            the file is not such a mixture but data itself.
        processor_options: What a recipe may set in ``data.processor``.
        upstream_labels: Whether upstream learns from other tokens than the answers in some rows of its own form, and
            the processor does so too where ``Example.by_roles`` is False.
    """

    parse_record: Callable[[Mapping[str, Any], Path, str], Example | None] | str | None = None
    read_mixture: Callable[[Path], Sequence[MixturePart] | None] | str | None = None
    processor_options: tuple[ProcessorOption, ...] = ()
    upstream_labels: bool = False


@dataclass(frozen=True)
class TestSupport:
    """What lets a family be tried without its published weights.

    Attributes:
        write_tiny_model: Writes a loadable folder of a tiny model, for ``vlm-lora train --demo``, ``vlm-lora parity
            --demo`` and tests. It may return a recipe document that is laid over the demo's own settings.
        read_golden_case: Reads a folder of reference numbers, or returns None when the folder is another
            family's.
    """

    __test__ = False  # pytest would take it for tests

    write_tiny_model: Callable[[Path], Mapping[str, Any] | None] | str | None = None
    read_golden_case: Callable[[Path], GoldenCase | None] | str | None = None


@dataclass(frozen=True)
class Family:
    """Who a model family is. Each function may be given as ``"module:function"``, imported when it is first called.

    Attributes:
        name: The entry point's name, lower case: ``monkey``.
        title: What people call it: ``Monkey``.
        model_types: The ``model_type`` values of configs of this family's classes.
        presets: Recipe documents by name, each the mapping that a YAML recipe would hold.
        default_preset: The one used when the user names none.
        recognises: Whether a model folder is this family's, judged by content (config keys, tensor names),
            never by running code from it.
        architecture: What a model of the family is made of. It is given a model, loaded or on the meta device; a
            family that knows its answer reads ``model.config`` alone.
        load_model: Builds the model of a folder, in eval mode, without remote code.
        load_processor: Builds the processor of a folder, without remote code.
        fallback: Whether the family is asked only where no other one recognises a folder or owns a model.
        data_formats: The data forms of its own.
        test_support: What lets it be tried without its published weights.
        variants: Names of architectures that one ``config.json`` can stand for, the common one first; empty
            where the config says everything.
        auto_modules: Modules that register this family's own model types with transformers' auto classes when
            they are imported. That happens by itself once ``AutoModelForCausalLM`` is imported.
        swift_model_types: Model types that ms-swift itself has for this family's checkpoints and that the
            family takes over there, because Swift's own cannot work. A fallback takes over none.
        size: The published model's sizes, from which hardware tiers are chosen before a model is at hand; None
            leaves the choice to rules that need no sizes.
        advise: What ``inspect`` says about a resolved recipe beside its numbers, one sentence or two a line.
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    presets: Mapping[str, Mapping[str, Any]]
    default_preset: str
    recognises: Callable[[Path], bool] | str
    architecture: Callable[[PreTrainedModel], Architecture] | str
    load_model: Callable[[LoadRequest], PreTrainedModel] | str
    load_processor: Callable[[LoadRequest], Processor] | str
    fallback: bool = False
    data_formats: DataFormats = field(default_factory=DataFormats)
    test_support: TestSupport = field(default_factory=TestSupport)
    variants: tuple[str, ...] = ()
    auto_modules: tuple[str, ...] = ()
    swift_model_types: tuple[str, ...] = ()
    size: ModelSize | None = None
    advise: Callable[[Recipe], Sequence[str]] | str | None = None
