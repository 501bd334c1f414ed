"""What is wrapped in ms-swift stands in one table."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_lora_plugin.frameworks.swift.hooks import HOOKS, install_hooks

PAGE = Path(__file__).parents[4] / "docs/explanation/swift.md"


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_each_is_documented_and_says_why(hook):
    owner = hook.owner or hook.module.rpartition(".")[2]
    assert f"`{owner}.{hook.name}`" in PAGE.read_text() or f"| `{hook.name}` |" in PAGE.read_text()
    assert hook.why


def test_a_second_installation_changes_nothing(swift):
    from swift.arguments.base_args.model_args import ModelArguments
    from swift.model import model_meta
    from swift.trainers import TrainerFactory

    def wrapped():
        return [vars(ModelArguments)["__post_init__"], model_meta._get_model_info, TrainerFactory.get_trainer_cls]

    install_hooks("registering")
    before = wrapped()
    install_hooks("registering")
    assert wrapped() == before
