"""The one kind of model that ``prepare`` returns.

Trainer, ms-swift and DeepSpeed decide by ``isinstance(model, PeftModel)`` how to save, resume and shard, so
it is one also when a recipe trains no PEFT LoRA at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from peft import PeftModelForCausalLM

from vlm_lora_plugin.errors import CheckpointError, ModelError, TrainingError
from vlm_lora_plugin.names import ADAPTER_NAME, canonical_name
from vlm_lora_plugin.parallel.agreement import several_ranks
from vlm_lora_plugin.parallel.sharding import full_tensors
from vlm_lora_plugin.patches.autocast import HALF_DTYPES, autocast_calls
from vlm_lora_plugin.patches.stack import PatchStack
from vlm_lora_plugin.planning.effect import possible_recipe

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.contract import Family, Patch
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe
    from vlm_lora_plugin.selection.manifest import Manifest
    from vlm_lora_plugin.selection.trainables import TrainableSet

PREPARED_ATTRIBUTE = "_vlm_lora_prepared"
"""Attribute of a base model that a Trainer trains by itself: the prepared model around it."""


@dataclass
class Preparation:
    """What was decided when a model was prepared; ``model.vlm_lora``.

    Attributes:
        family: The model's family.
        recipe: The resolved recipe.
        trainable: What learns.
        manifest: The same, as it goes into checkpoints.
        dtype: Dtype the base was loaded in, which its frozen parameters keep.
        steps: Optimizer steps that the run has done, for the manifest; None until a callback or a checkpoint tells.
    """

    family: Family
    recipe: ResolvedRecipe
    trainable: TrainableSet
    manifest: Manifest
    dtype: torch.dtype
    _base: nn.Module = field(repr=False)
    _stack: PatchStack = field(default_factory=PatchStack, repr=False)
    steps: int | None = None

    @property
    def patches(self) -> tuple[str, ...]:
        """Names of the patches of the forward pass, in the order in which they were applied."""
        return self._stack.names

    def effective(self, recipe: ResolvedRecipe) -> ResolvedRecipe:
        """Return another recipe as it would be carried out here, to compare it with this one.

        Raises:
            RecipeError: The user set a key in it that would have no effect.
        """
        return possible_recipe(recipe, self._base, self.family, self.trainable.architecture)

    def apply_patches(self, patches: Iterable[Patch]) -> None:
        """Apply patches in order, and autocast around them where the base is 16 bit; or none of them."""
        autocast = [autocast_calls(self.dtype)] if self.dtype in HALF_DTYPES else []
        self._stack.apply(self._base, [*patches, *autocast])

    def undo_patches(self, *, autocast: bool = False) -> None:
        """Take back every patch of the forward pass, the last one first. LoRA and selection stay.

        Args:
            autocast: Also take back the autocast of a 16-bit base. It stays by default, because fp32 parameters
                beside 16-bit weights need it; without it put one around your own calls.
        """
        self._stack.undo()
        if not autocast:
            self.apply_patches(())


class LoadResult(NamedTuple):
    """What ``load_adapter`` returns to PEFT's and the Trainer's code; loading is strict, so both are empty."""

    missing_keys: Sequence[str] = ()
    unexpected_keys: Sequence[str] = ()


class VlmLoraPeftModel(PeftModelForCausalLM):  # type: ignore[misc]  # PEFT is untyped
    """A prepared model: PEFT's LoRA and the base's own trained parameters, saved and loaded as one.

    Made by :func:`vlm_lora_plugin.prepare`. ``model.vlm_lora`` tells what was decided.
    """

    vlm_lora: Preparation

    def named_trainables(self) -> dict[str, nn.Parameter]:
        """Return canonical name -> parameter of everything that the recipe trains, in the model's order."""
        wanted = self.vlm_lora.trainable.names
        named = ((canonical_name(name), parameter) for name, parameter in self.named_parameters())
        return {name: parameter for name, parameter in named if name in wanted}

    def gradient_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Agree with a recipe that checkpoints; the recipe's own switches were applied by ``prepare``.

        Raises:
            TrainingError: The recipe switches it off for every component.
        """
        if not any(self.vlm_lora.recipe.gradient_checkpointing.values()):
            raise TrainingError(
                "gradient_checkpointing=True was asked for, but the recipe's gradient_checkpointing is off everywhere",
                why="The recipe decides which components are checkpointed, so that every framework does the same.",
                fix="Set gradient_checkpointing: {language: true} in the recipe, or remove it from the arguments.",
            )

    def gradient_checkpointing_disable(self) -> None:
        """Agree with a recipe that does not checkpoint.

        Raises:
            TrainingError: The recipe switches it on for some component.
        """
        switched_on = [name for name, on in self.vlm_lora.recipe.gradient_checkpointing.items() if on]
        if switched_on:
            raise TrainingError(
                f"gradient checkpointing cannot be switched off: the recipe asks for it in {', '.join(switched_on)}",
                fix="Prepare the model with a recipe that does not, or call model.vlm_lora.undo_patches().",
            )

    def disable_adapter(self) -> Any:
        """Switch PEFT's LoRA off for a while, where that gives the base model back.

        Raises:
            ModelError: The recipe also trains parameters of the base, which would stay as trained.
        """
        own = self.vlm_lora.trainable.of_base()
        if own:
            raise ModelError(
                f"The adapter cannot be switched off: {len(own)} parameters of the base model are trained too",
                why="They would stay as trained, and the result would be neither the base nor the tuned model.",
                fix="Load the base model a second time.",
            )
        return super().disable_adapter()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: str | bool = False,
        is_main_process: bool = True,
        path_initial_model_for_weight_conversion: str | None = None,
        *,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        **_: Any,
    ) -> None:
        """Write everything that was trained; see :func:`vlm_lora_plugin.checkpoint.save_adapter`.

        Args:
            save_directory: The folder.
            safe_serialization: Must be True: only safetensors are written.
            selected_adapters: None or ``["default"]``.
            save_embedding_layers: Without effect: trained embeddings are always saved, frozen ones never.
            is_main_process: False writes nothing; nor does, without ``state_dict``, another than a machine's
                first process. Where ZeRO shards the parameters, every rank must come here all the same.
            path_initial_model_for_weight_conversion: Must be None.
            state_dict: Tensors to write instead of the model's, as gathered by DeepSpeed.

        Raises:
            CheckpointError: An option cannot be met, or a tensor is missing, empty or of another shape.
        """
        from vlm_lora_plugin.checkpoint.save import save_adapter

        if not safe_serialization or path_initial_model_for_weight_conversion is not None:
            raise CheckpointError(
                "A prepared model is saved as plain LoRA in safetensors only",
                fix="Leave safe_serialization and path_initial_model_for_weight_conversion at their defaults.",
            )
        if selected_adapters not in (None, [ADAPTER_NAME]):
            raise CheckpointError(
                f"A prepared model has one adapter, '{ADAPTER_NAME}', not {selected_adapters}",
                fix="Leave selected_adapters out.",
            )
        if state_dict is None:
            is_main_process = is_main_process and not (several_ranks() and int(os.environ.get("LOCAL_RANK", "0")) > 0)
            state_dict = full_tensors(self.named_trainables(), keep=is_main_process)
        if is_main_process:
            save_adapter(self, save_directory, state_dict=state_dict)

    def load_adapter(
        self, model_id: str | os.PathLike[str], adapter_name: str = ADAPTER_NAME, is_trainable: bool = False, **_: Any
    ) -> LoadResult:
        """Load a checkpoint of this very recipe in place; the Trainer's resume and best-model loading call it.

        Args:
            model_id: A folder that :meth:`save_pretrained` wrote.
            adapter_name: ``default``; a prepared model has one adapter.
            is_trainable: False also switches to evaluation mode.

        Raises:
            CheckpointError: The folder is incomplete, broken, or of another recipe or base model.
        """
        from vlm_lora_plugin.checkpoint.load import restore

        if adapter_name != ADAPTER_NAME:
            raise CheckpointError(
                f"A prepared model has one adapter, '{ADAPTER_NAME}'; '{adapter_name}' cannot be added",
                fix="Load the other adapter into a second base model with vlm_lora_plugin.load_adapter.",
            )
        restore(self, model_id)
        if not is_trainable:
            self.eval()
        return LoadResult()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load as the class does; without ``strict``, also by the names that a model without PEFT's wrapper has.

        So the Trainer resumes here what it saved of a model that the callback prepared in place.
        """
        if not strict:
            own = {canonical_name(name): name for name in self.state_dict()}
            state_dict = {own.get(canonical_name(name), name): tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def add_adapter(self, adapter_name: str, *_: Any, **__: Any) -> NoReturn:
        """Refuse: the manifest describes exactly one adapter."""
        raise ModelError(
            f"'{adapter_name}' cannot be added: a prepared model has exactly one adapter",
            fix="Prepare a second base model for it.",
        )


def find_prepared(model: nn.Module | None) -> VlmLoraPeftModel | None:
    """Return the prepared model inside what a framework wrapped around it, or beside its base; or None."""
    from accelerate.utils import extract_model_from_parallel

    if model is None:
        return None
    inner = extract_model_from_parallel(model, keep_torch_compile=False)
    prepared = inner if isinstance(inner, VlmLoraPeftModel) else vars(inner).get(PREPARED_ATTRIBUTE)
    return prepared if isinstance(prepared, VlmLoraPeftModel) else None
