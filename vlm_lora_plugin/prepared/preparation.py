"""The core of ``prepare``: a freshly loaded model becomes one that trains what a recipe says. It knows no framework."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import torch
from peft import PeftModel
from torch import nn

from vlm_lora_plugin.checkpoint.load import check_base
from vlm_lora_plugin.checkpoint.manifest_file import read_manifest
from vlm_lora_plugin.documents import differences
from vlm_lora_plugin.errors import CheckpointError, ModelError, listed
from vlm_lora_plugin.models.keyed_init import fresh_lora_of
from vlm_lora_plugin.names import canonical_name, is_injected
from vlm_lora_plugin.parallel.agreement import check_ranks_agree
from vlm_lora_plugin.parallel.sharding import full_numel, full_shape, is_sharded
from vlm_lora_plugin.parallel.zero3 import refuse_engine
from vlm_lora_plugin.patches.from_recipe import check_applied, with_core_patches
from vlm_lora_plugin.planning.effect import effective_recipe
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.prepared.injection import inject
from vlm_lora_plugin.prepared.lineage import start_from
from vlm_lora_plugin.prepared.model import Preparation, VlmLoraPeftModel
from vlm_lora_plugin.recipe import Recipe, RecipeSource
from vlm_lora_plugin.selection.base_bytes import byte_digests
from vlm_lora_plugin.selection.base_weights import base_digests
from vlm_lora_plugin.selection.manifest import make_manifest
from vlm_lora_plugin.selection.resolve import resolve_selection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vlm_lora_plugin.selection.trainables import TrainableSet

_MARK = "_vlm_lora_base"
"""Attribute of a base model that prepare has changed."""


class _Mark:
    """A deep copy of a base is marked as it is. Pickled, one would lose its patches without a word."""

    def __deepcopy__(self, _: object) -> _Mark:
        return self

    def __reduce_ex__(self, _: object) -> NoReturn:
        raise ModelError(
            "A prepared model cannot be pickled",
            why="pickle brings a model's own methods back instead of those that patches have wrapped.",
            fix="Keep what was trained with save_pretrained, bring it back with vlm_lora_plugin.load_adapter; or use "
            "copy.deepcopy for a second model in this process.",
        )


def prepare_model(model: PreTrainedModel | PeftModel, recipe: RecipeSource | None = None) -> VlmLoraPeftModel:
    """Make a freshly loaded model train exactly what a recipe says, for a loop of your own: it wraps nothing.

    No class of any library is changed; what is changed is this model. With ``transformers.Trainer`` call
    :func:`vlm_lora_plugin.prepare`, which does the same and adds the Trainer's hooks. Here the loop's own part is:
    an optimizer made of :func:`vlm_lora_plugin.parameter_groups`, ``num_items_in_batch`` where gradients accumulate,
    ``save_pretrained`` and ``load_adapter`` of what this returns.

    Puts LoRA in through PEFT, draws it by key, sets ``requires_grad``, turns every trained parameter into
    fp32 and leaves every frozen one in its dtype, and applies the patches of the forward pass, the family's and
    the core's. The base model is changed in place. On a 16-bit base, ``forward`` and ``generate`` enter autocast by
    themselves where none is active. Training or evaluation mode stays as it is.

    A key of the user's that can have no effect in this model, whatever loop trains it, is refused: a switch that the
    model cannot have, checkpointing where nothing learns, ``lora.*`` where PEFT puts no LoRA in,
    ``train_fixed_tables`` where none is trained, targets and rates of nothing. Keys that a loop follows as it likes are
    not judged here, because a loop of your own may well use them: batches, length (``max_steps`` beside
    ``num_train_epochs``), schedule and warm-up, evaluation, data. They are refused where the loop is known: by
    ``vlm-lora train``, ``parity`` and ``swift sft``, the two of the schedule by
    :func:`vlm_lora_plugin.training_arguments`.

    Args:
        model: The loaded model, before a Trainer or optimizer is built; or one that was prepared already.
        recipe: A Recipe, a mapping, a path to a YAML file or a preset's name; None for the family's default.

    Returns:
        A ``PeftModel``; its ``vlm_lora`` tells what was decided. A model that was prepared with the same
        recipe before is returned as it is, and so is every prepared one when no recipe is given.

    Raises:
        ModelError: No family owns the model, it is not freshly loaded, or an engine trains it already.
        RecipeError: The recipe cannot be read, or a key of the user's would have no effect.
        SelectionError: The recipe does not fit the model.
        TrainingError: Under ZeRO-3, another rank prepares its model differently.
    """
    if isinstance(model, VlmLoraPeftModel):
        return model if recipe is None else _prepared_before(model, recipe)
    return _prepare(model, recipe)


def prepare_outline(model: PreTrainedModel, recipe: RecipeSource | None = None) -> VlmLoraPeftModel:
    """Do what :func:`prepare_model` does with a model on the meta device, to learn what training it would take.

    Names, shapes, dtypes, ``requires_grad`` and patches are those of a prepared model; nothing is drawn, and the
    manifest knows nothing of the base's weights. It can neither be trained nor saved.

    Args:
        model: A model without values, changed in place; see ``LoadRequest.device``.
        recipe: As in :func:`prepare_model`.

    Raises:
        ModelError: No family owns the model, some of its parameters have values, or it was prepared before.
        RecipeError: The recipe cannot be read, or a key of the user's would have no effect.
        SelectionError: The recipe does not fit the model.
    """
    valued = [name for name, parameter in model.named_parameters() if not parameter.is_meta]
    if valued:
        raise ModelError(
            f"These parameters have values: {listed(valued)}",
            fix="Build the model on the meta device, or call prepare_model.",
        )
    return _prepare(model, recipe, values=False)


def _prepare(
    model: PreTrainedModel | PeftModel, recipe: RecipeSource | None, *, strict: bool = True, values: bool = True
) -> VlmLoraPeftModel:
    _check_is_model(model)
    if isinstance(model, PeftModel) or is_injected(model):
        raise ModelError(
            "The model already has PEFT layers",
            why="Layers that this recipe does not know of would be trained, saved and loaded wrongly.",
            fix="Give the freshly loaded model, or the one that prepare returned.",
        )
    manager = get_manager()
    family = manager.family_of_model(model)
    resolved = resolve_recipe(recipe, family, architecture=partial(manager.architecture, family, model))
    if values:
        _check_loaded(model, resolved)
    selection = resolve_selection(model, family, resolved)
    architecture = selection.architecture
    resolved = effective_recipe(resolved, model, family, selection, strict=strict)
    dtype = _load_dtype(model)
    name = str(dtype).removeprefix("torch.")
    own = {*fresh_lora_of(model), *(parameter.name for parameter in selection.of_base())}
    weights = base_digests(model, architecture.components, own, name) if values else None
    every_byte = byte_digests(model, architecture.components, own) if values else None
    manifest = make_manifest(selection, resolved, model.config, name, weights, every_byte)
    if any(is_sharded(parameter) for parameter in model.parameters()):  # from here on ranks wait for each other
        check_ranks_agree(manifest)
    prepared = inject(model, selection, resolved)
    _switch(prepared, selection)
    prepared.vlm_lora = Preparation(family, resolved, selection, manifest, dtype, model)
    vars(model)[_MARK] = _Mark()
    patches = with_core_patches(get_manager().wrap_forward(family, model, resolved), resolved, model, architecture)
    prepared.vlm_lora.apply_patches(patches)
    check_applied(model, patches, architecture)
    return prepared


def load_trained(
    model: PreTrainedModel, folder: str | os.PathLike[str], *, is_trainable: bool = False
) -> VlmLoraPeftModel:
    """Prepare a freshly loaded base by the recipe of what was trained on it, and load every tensor.

    Args:
        model: The base.
        folder: A folder that ``save_pretrained`` or the Trainer wrote.
        is_trainable: False gives a frozen model in evaluation mode; True one that goes on learning, in the
            mode of the base.

    Raises:
        CheckpointError: The folder is incomplete, broken, or belongs to another base model.
        ModelError: The base is not freshly loaded.
    """
    manifest = read_manifest(folder)
    if isinstance(model, PeftModel):
        raise ModelError(
            "The base of an adapter must be the plain model, not one with PEFT layers",
            fix="Load the base model again, or call load_adapter(folder) of the prepared model.",
        )
    family = get_manager().family_of_model(model).name
    if family != manifest.family:
        raise CheckpointError(f"{folder} belongs to the family {manifest.family}, the base model is {family}")
    check_base(manifest, model.config, folder)
    prepared = _prepare(model, dict(manifest.recipe), strict=False)
    if is_trainable:
        start_from(prepared, folder)
    else:
        prepared.load_adapter(folder)
        prepared.requires_grad_(False)
    return prepared


def _prepared_before(model: VlmLoraPeftModel, recipe: RecipeSource | None) -> VlmLoraPeftModel:
    state = model.vlm_lora
    wanted = state.effective(resolve_recipe(recipe, state.family, architecture=state.trainable.architecture))
    found = differences(state.recipe.document(), wanted.document())
    if found:
        raise ModelError(
            f"The model was prepared with another recipe (before / now): {listed(found)}",
            fix="Load the base model again to prepare it differently.",
        )
    return model


def _check_is_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"prepare takes a loaded model, not a {type(model).__name__}",
            fix="model, processor = vlm_lora_plugin.load(folder), then prepare(model, recipe).",
        )
    refuse_engine(model)
    if vars(model).get(_MARK, False):
        raise ModelError(
            f"This {type(model).__name__} was prepared before; prepare returned another object around it",
            why="Prepared a second time, its forward pass would be patched twice.",
            fix="Go on with what prepare returned; or load the base model again to prepare it differently.",
        )
    inner = getattr(model, "module", getattr(model, "_orig_mod", None))
    if isinstance(inner, nn.Module):
        raise ModelError(
            f"The model is wrapped in a {type(model).__name__}",
            why="What learns must be decided before anything is wrapped around the model.",
            fix="Call prepare with the model itself, and give what it returns to torch.compile, DataParallel, ...",
        )


def _check_loaded(model: nn.Module, recipe: Recipe) -> None:
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if empty:
        raise ModelError(
            f"These parameters have no values, they are on the meta device: {listed(empty)}",
            fix="Load the model with its weights: vlm_lora_plugin.load(folder).",
        )
    if getattr(model, "is_gradient_checkpointing", False):
        raise ModelError(
            "Gradient checkpointing was switched on before prepare; the recipe says "
            f"{dict(recipe.gradient_checkpointing) or 'off'}",
            fix="Leave it to the recipe: gradient_checkpointing: {language: true}.",
        )


def _load_dtype(model: nn.Module) -> torch.dtype:
    """Return the floating dtype that most elements of a model have."""
    sizes: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            sizes[parameter.dtype] += full_numel(parameter)
    return sizes.most_common(1)[0][0]


def _switch(model: VlmLoraPeftModel, selection: TrainableSet) -> None:
    """Let exactly the selection learn."""
    expected = {parameter.name: parameter.shape for parameter in selection.parameters}
    for name, parameter in ((canonical_name(name), parameter) for name, parameter in model.named_parameters()):
        learns = expected.pop(name, None)
        if learns is not None and full_shape(parameter) != learns:
            raise ModelError(f"{name} has the shape {full_shape(parameter)}, {learns} was expected")
        parameter.requires_grad_(learns is not None)
    if expected:
        raise ModelError(f"PEFT did not make these parameters: {listed(sorted(expected))}")
