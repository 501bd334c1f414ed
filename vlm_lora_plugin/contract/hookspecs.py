"""The four questions an adapter answers.

An adapter is a module (or object) whose functions carry :data:`hookimpl`. It is registered under the
entry-point group ``vlm_lora_plugin.adapters`` with the family's name. A policy is one whose functions all
carry ``hookimpl(wrapper=True)``; it is registered under ``vlm_lora_plugin.policies`` with a name of its own
and sees, and may change, what every adapter answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from vlm_lora_plugin.contract import Family, Hardware, Patch, TrainableSelection
    from vlm_lora_plugin.recipe import Recipe

PROJECT_NAME = "vlm_lora_plugin"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


class AdapterSpecs:
    """Signatures of the hooks; the docstrings are the reference."""

    @hookspec(firstresult=True)
    def describe_family(self) -> Family:  # type: ignore[empty-body]
        """Say who you are: names, presets, and the functions that look, load and describe.

        Called once when the adapter is loaded, before any model exists. Must not import torch: give the functions of
        :class:`~vlm_lora_plugin.contract.Family` as ``"module:function"``, imported when they are first called.

        Results: ``firstresult``; only the one adapter is asked.

        Returns:
            The family's description. Its ``name`` must equal the entry point's.

        Example:
            >>> from vlm_lora_plugin import hookimpl
            >>> from vlm_lora_plugin.contract import Architecture, Component, Family
            >>> parts = (Component("language", ("model",), target_modules=("q_proj",)),)
            >>> class Adapter:
            ...     @hookimpl
            ...     def describe_family(self):
            ...         return Family(
            ...             name="tiny",
            ...             title="Tiny",
            ...             model_types=("tiny",),
            ...             presets={"lora": {"components": {"language": "lora"}}},
            ...             default_preset="lora",
            ...             recognises=lambda folder: False,
            ...             architecture=lambda model: Architecture(parts),
            ...             load_model="my_package.modeling:load_model",
            ...             load_processor="my_package.processing:load_processor",
            ...         )
            >>> Adapter().describe_family().title
            'Tiny'
        """

    @hookspec(firstresult=True)
    def select_trainable(self, model: nn.Module, recipe: Recipe) -> TrainableSelection:  # type: ignore[empty-body]
        """Say which parameters learn, by which means, in which learning-rate group. Change nothing.

        Called by ``prepare`` and ``inspect`` with a model that may be on the meta device.

        Results: ``firstresult``; only the adapter that owns the model is asked, policies see every call.

        Args:
            model: The freshly loaded model.
            recipe: The resolved recipe (no preset left in it).

        Returns:
            Ordered rules. Without this hook, or with None, they are the recipe's own.

        Raises:
            SelectionError: The recipe asks for something this model cannot do.

        Example:
            >>> from vlm_lora_plugin import hookimpl
            >>> from vlm_lora_plugin.recipe import Recipe
            >>> from vlm_lora_plugin.contract import TrainableSelection
            >>> class Adapter:
            ...     @hookimpl
            ...     def select_trainable(self, model, recipe):
            ...         return TrainableSelection(rules=tuple(recipe.rules))
            >>> recipe = Recipe(rules=[{"component": "language", "means": "lora"}])
            >>> Adapter().select_trainable(None, recipe).rules[0].means
            'lora'
        """

    @hookspec(firstresult=True)
    def wrap_forward(self, model: nn.Module, recipe: Recipe) -> Sequence[Patch]:  # type: ignore[empty-body]
        """Say which reversible changes make the forward pass leaner with the same result, beside the core's own.

        Called by ``prepare`` after selection and injection; and with a model on the meta device, by ``inspect`` and
        ``train``, where the recipe asks for checkpointing or answer-only loss that the core itself cannot do in it.
        Applying and undoing is the core's work. The core adds checkpointing of blocks that are transformers'
        ``GradientCheckpointingLayer``, and answer-only logits, for each key of the recipe that no patch here names
        in ``Patch.serves``.

        Results: ``firstresult``; only the adapter that owns the model is asked, policies see every call.
        An adapter without this hook has the core's patches alone.

        A deep copy of the model computes with its own weights: what functions close over is made the copy's where
        they stand in a module, as attributes or hooks, or undo a patch. What a patch remembers elsewhere is not.

        Args:
            model: The base model; the prepared one's, with ``requires_grad`` set, or one without weights.
            recipe: The resolved recipe.

        Returns:
            Patches in the order in which they are applied.

        Raises:
            ModelError: The model's forward is not one this adapter knows.

        Example:
            >>> from vlm_lora_plugin import hookimpl
            >>> from vlm_lora_plugin.contract import Patch
            >>> def quiet(model):
            ...     before, model.verbose = model.verbose, False
            ...     return lambda: setattr(model, "verbose", before)
            >>> class Adapter:
            ...     @hookimpl
            ...     def wrap_forward(self, model, recipe):
            ...         return [Patch("quiet", "prints nothing", quiet)]
            >>> class Model:
            ...     verbose = True
            >>> model = Model()
            >>> undo = Adapter().wrap_forward(model, None)[0].apply(model)
            >>> model.verbose
            False
            >>> undo(); model.verbose
            True
        """

    @hookspec(firstresult=True)
    def deepspeed_config(self, recipe: Recipe, hardware: Hardware) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Say what must differ in ZeRO's settings for this family on this hardware.

        Called once for a recipe and machine, when its ZeRO stage is to be decided. The answer is merged over the
        core's own settings, key by key; an adapter without this hook changes nothing.

        Results: ``firstresult``; only the recipe's family is asked, policies see every call.

        Args:
            recipe: The recipe, its preset expanded; what the hardware fills in (batches, checkpointing) is
                decided after this answer.
            hardware: The machine the job is meant for.

        Returns:
            A nested mapping in DeepSpeed's own keys, without ``optimizer`` and ``scheduler``.

        Example:
            >>> from vlm_lora_plugin import hookimpl
            >>> from vlm_lora_plugin.contract import Hardware
            >>> class Adapter:
            ...     @hookimpl
            ...     def deepspeed_config(self, recipe, hardware):
            ...         return {"zero_optimization": {"stage": 2 if hardware.gpu_memory >= 40 else 3}}
            >>> Adapter().deepspeed_config(None, Hardware(gpus=3, gpu_memory=24))
            {'zero_optimization': {'stage': 3}}
        """
