"""The vocabulary of the contract: what adapters hand to the core and the core hands to frameworks.

Nothing here imports torch, transformers or pydantic, so that listing adapters stays instant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from vlm_lora_plugin.data.example import Example
    from vlm_lora_plugin.recipe import Recipe, Rule

Means = Literal["frozen", "lora", "full"]
"""How a part of the model learns: not at all, through low-rank updates, or with all its weights."""

ComponentName = Literal["vision", "aligner", "language", "embeddings", "head"]
"""The parts every vision-language model is described by; a family may lack some."""

COMPONENT_NAMES: tuple[ComponentName, ...] = get_args(ComponentName)
MEANS: tuple[Means, ...] = get_args(Means)

Kind = Literal["full", "builtin_lora", "peft_lora"]
"""What a trainable parameter is: a weight of the base, LoRA that the base model itself carries, or PEFT's."""


@dataclass(frozen=True)
class Component:
    """One part of a model, by its parameter names.

    Attributes:
        name: Which of the five parts this is.
        prefixes: Dotted name prefixes. A parameter belongs to the component with the longest prefix that
            equals its name or is followed by a dot.
        target_modules: Suffixes of the linear layers that get PEFT LoRA when the component's means is
            ``lora`` and the recipe names no targets of its own.
        builtin_lora: Regular expression for the *whole* name of parameters that are LoRA inside the base
            model, or None. Where the model has such parameters, ``lora`` means them and not PEFT's.
        blocks: Regular expression for the whole name of the modules that repeat (transformer layers), the
            unit of gradient checkpointing; None where nothing repeats.
    """

    name: ComponentName
    prefixes: tuple[str, ...]
    target_modules: tuple[str, ...] = ()
    builtin_lora: str | None = None
    blocks: str | None = None


class Processor(Protocol):
    """Turns one :class:`~vlm_lora_plugin.data.example.Example` into tensors, and examples into a batch.

    Every framework calls the same processor, so that the ids, labels and pixels cannot differ.
    """

    tokenizer: Any

    def encode(
        self, example: Example, *, max_length: int | None = None, truncation_strategy: str = "raise"
    ) -> dict[str, Any]:
        """Return ``input_ids`` [T] int64, ``labels`` [T] int64 (-100 where not supervised) and
        ``pixel_values``, a tensor [n, 3, S, S] or a list of [3, H, W]; opens the images. Raises DataError."""
        ...

    def encode_prompt(self, example: Example) -> dict[str, Any]:
        """Return ``input_ids`` and ``pixel_values`` of everything before the last answer, for generation."""
        ...

    def count_tokens(self, example: Example) -> tuple[int, int]:
        """Return (tokens, supervised tokens) of the untruncated example, without decoding an image."""
        ...

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Pad to the longest row: ``input_ids``, ``attention_mask``, ``labels`` [B, T], ``pixel_values`` of all."""
        ...

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what is needed to load this processor again from ``folder``."""
        ...


@runtime_checkable
class MeasuringProcessor(Protocol):
    """What a processor may offer besides: the length of a row from the sizes of its images, without their pixels.

    Where the number of an image's tokens depends on its size, rows are checked by this before training.
    A processor may also have ``stop_token_ids``, the tokens that end a generated answer, where it is not the
    tokenizer's ``eos_token_id`` alone.
    """

    def measure(
        self,
        example: Example,
        image_sizes: Sequence[tuple[int, int]],
        *,
        max_length: int | None = None,
        truncation_strategy: str = "raise",
    ) -> tuple[int, int]:
        """Return (tokens, supervised tokens) that ``encode`` would give, or raise what it would raise."""
        ...


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
class ComponentSize:
    """How large one part of a model is, for predictions of memory before a model is at hand.

    Attributes:
        parameters: Elements in all, LoRA of the model's own included.
        fixed: Elements that stay frozen when the part is trained ``full``: computed tables, LoRA's scale.
        builtin_lora: Elements of the LoRA that the model itself carries.
        lora_per_rank: Elements that PEFT's LoRA adds for each unit of ``r`` on the part's own
            ``target_modules``: the sum of in and out features.
        largest: Elements of its largest tensor, which ZeRO-3 gathers in one piece.
        blocks: Layers that repeat.
        width: Channels between them.
        kept_per_position: Bytes that one block keeps for the backward pass for each position, in 16 bit and
            without checkpointing, where it learns.
        passed_per_position: The same where the block is frozen and gradients only pass through it.
        positions_per_image: Positions of its blocks for one image; 0: its positions are the row's tokens.
    """

    parameters: int
    fixed: int = 0
    builtin_lora: int = 0
    lora_per_rank: int = 0
    largest: int = 0
    blocks: int = 0
    width: int = 0
    kept_per_position: int = 0
    passed_per_position: int = 0
    positions_per_image: int = 0


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a family's published model.

    Attributes:
        name: Which model that is: ``echo840/Monkey``.
        components: Each of its parts.
        vocabulary: Logits of one position.
        tokens_per_image: Tokens that one image takes of a row.
    """

    name: str
    components: Mapping[ComponentName, ComponentSize]
    vocabulary: int
    tokens_per_image: int


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


@dataclass(frozen=True)
class TrainableSelection:
    """What ``select_trainable`` answers: rules in order, of which the last that matches a name decides.

    A parameter that no rule matches is frozen.
    """

    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Patch:
    """One reversible change of a model's forward pass that keeps its result.

    Attributes:
        name: Short and unique within the model: ``checkpoint vision``.
        reason: What it saves, in a few words, for the table that the user sees.
        apply: Changes the model and returns the function that undoes exactly that.
    """

    name: str
    reason: str
    apply: Callable[[nn.Module], Callable[[], None]]


@dataclass(frozen=True)
class Hardware:
    """The machine a job is meant for.

    Attributes:
        gpus: Devices of one node.
        gpu_memory: Memory of one device in GiB (2^30 bytes).
        host_memory: Host memory of one node in GiB, or None when unknown.
        bf16: Whether the device computes in bfloat16.
        nodes: Machines of this kind that train together.
    """

    gpus: int
    gpu_memory: float
    host_memory: float | None = None
    bf16: bool = True
    nodes: int = 1

    @property
    def ranks(self) -> int:
        """Processes of the job, one a device."""
        return self.gpus * self.nodes

    def __str__(self) -> str:
        devices = f"{self.gpus}x{self.gpu_memory:g}"
        return devices if self.nodes == 1 else f"{self.nodes} nodes of {devices}"


@dataclass(frozen=True)
class AdapterRecord:
    """An entry point of the adapter or policy group and what became of it.

    Attributes:
        name: The entry point's name; an adapter's is its family's.
        distribution: Name and version of the distribution that ships it.
        value: The entry point's target, ``package.module``.
        error: The traceback's text if loading failed, else None.
        builtin: Whether it ships with this package.
        policy: Whether it is a policy, which wraps every adapter's answers, and no adapter.
    """

    name: str
    distribution: str
    value: str
    error: str | None = None
    builtin: bool = False
    policy: bool = False
