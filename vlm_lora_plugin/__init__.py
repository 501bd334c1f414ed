"""LoRA fine-tuning of vision-language models, the same in every framework.

``load`` reads a model folder, ``prepare`` makes a model train what a recipe says, ``load_adapter`` brings
back what was trained. ``prepare_model`` is ``prepare`` for a loop of your own: it wraps nothing of any library.
Nothing here imports torch until one of them is used. Importing this package also lets transformers'
``AutoModelForCausalLM`` find the families' models; ``register_auto_classes`` does it at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lora_plugin._version import __version__
from vlm_lora_plugin.contract.hookspecs import hookimpl
from vlm_lora_plugin.lazy import lazy_names
from vlm_lora_plugin.models.auto_finder import install as _install_auto_classes

if TYPE_CHECKING:
    from vlm_lora_plugin.data.dataset import ConversationDataset
    from vlm_lora_plugin.errors import VlmLoraError
    from vlm_lora_plugin.frameworks.trainer import VlmLoraCallback, training_arguments
    from vlm_lora_plugin.frameworks.trainer.groups import parameter_groups
    from vlm_lora_plugin.frameworks.trainer.resource_monitor import ResourceMonitor
    from vlm_lora_plugin.job.train_job import TrainJob
    from vlm_lora_plugin.loading import load
    from vlm_lora_plugin.merging.merge import merge_adapter
    from vlm_lora_plugin.models.auto import register_auto_classes
    from vlm_lora_plugin.planning.deepspeed import deepspeed_settings
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe
    from vlm_lora_plugin.plugins.manager import get_manager
    from vlm_lora_plugin.preparation import load_adapter, prepare
    from vlm_lora_plugin.prepared.preparation import prepare_model, prepare_outline
    from vlm_lora_plugin.recipe import Recipe

_LAZY = {
    "vlm_lora_plugin.data.dataset": ("ConversationDataset",),
    "vlm_lora_plugin.errors": ("VlmLoraError",),
    "vlm_lora_plugin.frameworks.trainer": ("VlmLoraCallback", "training_arguments"),
    "vlm_lora_plugin.frameworks.trainer.groups": ("parameter_groups",),
    "vlm_lora_plugin.frameworks.trainer.resource_monitor": ("ResourceMonitor",),
    "vlm_lora_plugin.job.train_job": ("TrainJob",),
    "vlm_lora_plugin.loading": ("load",),
    "vlm_lora_plugin.merging.merge": ("merge_adapter",),
    "vlm_lora_plugin.models.auto": ("register_auto_classes",),
    "vlm_lora_plugin.planning.deepspeed": ("deepspeed_settings",),
    "vlm_lora_plugin.planning.resolved": ("ResolvedRecipe",),
    "vlm_lora_plugin.plugins.manager": ("get_manager",),
    "vlm_lora_plugin.preparation": ("load_adapter", "prepare"),
    "vlm_lora_plugin.prepared.preparation": ("prepare_model", "prepare_outline"),
    "vlm_lora_plugin.recipe": ("Recipe",),
}

__all__ = [
    "ConversationDataset",
    "Recipe",
    "ResolvedRecipe",
    "ResourceMonitor",
    "TrainJob",
    "VlmLoraCallback",
    "VlmLoraError",
    "__version__",
    "deepspeed_settings",
    "get_manager",
    "hookimpl",
    "load",
    "load_adapter",
    "merge_adapter",
    "parameter_groups",
    "prepare",
    "prepare_model",
    "prepare_outline",
    "register_auto_classes",
    "training_arguments",
]


if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, _LAZY)


def __dir__() -> list[str]:
    return sorted(__all__)


_install_auto_classes()
