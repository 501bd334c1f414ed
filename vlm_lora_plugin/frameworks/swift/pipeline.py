"""Where ``swift sft`` takes its data and its trainer from when the tuner is ``vlm_lora``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.frameworks.swift.families import family_of_type
from vlm_lora_plugin.frameworks.swift.names import TUNER
from vlm_lora_plugin.frameworks.swift.recipe import given_recipe
from vlm_lora_plugin.frameworks.swift.wrapping import wrap
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Processor


def install_trainer() -> None:
    """Have Swift's factory give our trainer for our tuner; a second call changes nothing."""
    from swift.trainers import TrainerFactory

    wrap(TrainerFactory, "get_trainer_cls", _trainer)


def install_data() -> None:
    """Have ``swift sft`` read data as ``vlm-lora train`` does; a second call changes nothing."""
    from swift.pipelines.train.sft import SwiftSft

    wrap(SwiftSft, "_prepare_dataset", _data)


def _trainer(original: Callable[..., type]) -> Callable[..., type]:
    def get_trainer_cls(args: Any) -> type:
        if args.tuner_type != TUNER:
            return original(args)
        from vlm_lora_plugin.frameworks.swift.trainer import VlmLoraSwiftTrainer

        return VlmLoraSwiftTrainer

    return get_trainer_cls


def _data(original: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    def _prepare_dataset(self: Any) -> list[Any]:
        if self.args.tuner_type != TUNER:
            return original(self)
        from vlm_lora_plugin.frameworks.swift.dataset import read_datasets, with_system_prompt

        args = self.args
        family = family_of_type(args.model_type)
        find = partial(get_manager().architecture_of_folder, family, Path(args.model_dir))
        recipe = resolve_recipe(given_recipe(), family, architecture=find)
        processor: Processor = self.template.inner
        if args.system:
            processor = with_system_prompt(processor, args.system)
        sets = (args.dataset, args.val_dataset)
        return [read_datasets(files, processor, recipe.data, family, seed=recipe.seed) for files in sets]

    return _prepare_dataset
