"""Where ``swift sft`` takes its data and its trainer from when the tuner is ``vlm_lora``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.errors import SwiftError
from vlm_lora_plugin.frameworks.swift.families import family_of_type
from vlm_lora_plugin.frameworks.swift.job import SwiftJob
from vlm_lora_plugin.frameworks.swift.names import TUNER
from vlm_lora_plugin.frameworks.swift.recipe import run_recipe

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Processor


def choosing_trainer(original: Callable[..., type]) -> Callable[..., type]:
    """Return what gives our trainer for our tuner."""

    def get_trainer_cls(args: Any) -> type:
        if args.tuner_type != TUNER:
            return original(args)
        from vlm_lora_plugin.frameworks.swift.trainer import VlmLoraSwiftTrainer

        return VlmLoraSwiftTrainer

    return get_trainer_cls


def reading_data(original: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Return what reads data as ``vlm-lora train`` does, for our tuner."""

    def _prepare_dataset(self: Any) -> list[Any]:
        if self.args.tuner_type != TUNER:
            return original(self)
        from vlm_lora_plugin.frameworks.swift.dataset import read_datasets, with_system_prompt

        args = self.args
        family = family_of_type(args.model_type)
        recipe = run_recipe(family, Path(args.model_info.model_dir))
        if recipe is None:  # the options' check keeps one in every run that trains
            raise SwiftError("The run has no recipe", fix="Run `vlm-lora swift sft ...`, or hand one on by swift-args.")
        processor: Processor = self.template.inner
        if args.system:
            processor = with_system_prompt(processor, args.system)
        sets = (args.dataset, args.val_dataset)
        job = SwiftJob.of_process()
        decode = job is None or job.check_images
        return [read_datasets(files, processor, recipe.data, family, seed=recipe.seed, decode=decode) for files in sets]

    return _prepare_dataset
