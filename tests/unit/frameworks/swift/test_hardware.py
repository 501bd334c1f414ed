"""The recipe's hardware in a Swift run: number of processes, dtype, and the DeepSpeed document."""

import json
from types import SimpleNamespace

import pytest
import torch

from vlm_lora_plugin.errors import HardwareError, SwiftError
from vlm_lora_plugin.planning.deepspeed import deepspeed_settings
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager


@pytest.fixture
def three_cards(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    family = get_manager().family("monkey")
    recipe = resolve_recipe({"preset": "lora", "hardware": "3x24"}, family)
    return family, recipe, deepspeed_settings(recipe, family, recipe.hardware.machine())


def applied(family, recipe, **given):
    """What Swift's arguments hold as their DeepSpeed document, when ``given`` was asked for."""
    from vlm_lora_plugin.frameworks.swift.hardware import apply_hardware

    arguments = SimpleNamespace(deepspeed=given.get("deepspeed"))
    apply_hardware(arguments, given, recipe, family)
    return arguments.deepspeed


def dtype_set_by(recipe):
    """The dtype that Swift loads the model in when none was asked for."""
    from vlm_lora_plugin.frameworks.swift.hardware import apply_dtype

    arguments = SimpleNamespace(torch_dtype=None, model_info=SimpleNamespace(torch_dtype=None))
    apply_dtype(arguments, {}, recipe)
    assert arguments.model_info.torch_dtype == arguments.torch_dtype
    return arguments.torch_dtype


def test_swift_gets_the_document_of_the_recipes_hardware(swift, three_cards):
    family, recipe, document = three_cards
    assert document["zero_optimization"]["stage"] == 3
    assert applied(family, recipe) == document


@pytest.mark.parametrize("form", ["file", "text", "mapping"])
def test_the_same_document_may_be_given(swift, three_cards, tmp_path, form):
    family, recipe, document = three_cards
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(document))
    given = {"file": str(file), "text": json.dumps(document), "mapping": document}[form]
    assert applied(family, recipe, deepspeed=given) == document


def test_another_document_is_refused_with_both_values(swift, three_cards, tmp_path):
    family, recipe, document = three_cards
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({**document, "zero_optimization": {**document["zero_optimization"], "stage": 2}}))
    with pytest.raises(SwiftError, match=r"contradicts the recipe's hardware .*zero_optimization\.stage: 2 / 3"):
        applied(family, recipe, deepspeed=str(file))


def test_one_of_swifts_own_documents_is_refused(swift, three_cards):
    family, recipe, _ = three_cards
    with pytest.raises(SwiftError, match="--deepspeed zero3: the recipe's hardware makes its own document"):
        applied(family, recipe, deepspeed="zero3")


def test_a_document_for_hardware_that_needs_none_is_refused(swift):
    family = get_manager().family("monkey")
    with pytest.raises(SwiftError, match="the recipe's hardware needs none"):
        applied(family, resolve_recipe({"preset": "lora", "hardware": "1x24"}, family), deepspeed="zero2")


def test_without_hardware_the_document_is_the_users(swift):
    family = get_manager().family("monkey")
    assert applied(family, resolve_recipe("lora", family), deepspeed="zero2") == "zero2"


def test_another_number_of_processes_is_refused(sft_arguments):
    with pytest.raises(
        HardwareError, match=r"\(3x24\) has 3 devices, and 1 process was started(.|\n)*NPROC_PER_NODE=3"
    ):
        sft_arguments(recipe={"preset": "lora", "hardware": "3x24"})


def test_the_hardware_of_one_device_sets_batches_and_dtype(sft_arguments):
    arguments = sft_arguments(recipe={"preset": "lora", "hardware": {"gpu_memory": 24}})
    assert arguments.torch_dtype == torch.bfloat16
    assert arguments.training_args.gradient_accumulation_steps == 16
    assert not arguments.deepspeed


def test_bf16_on_hardware_without_it_is_refused(sft_arguments):
    hardware = {"gpu_memory": 32, "bf16": False}
    recipe = resolve_recipe({"preset": "lora", "hardware": hardware}, get_manager().family("monkey"))
    assert dtype_set_by(recipe) == torch.float16
    with pytest.raises(HardwareError, match=r"The dtype is bf16, hardware\.bf16 is false"):
        sft_arguments("--torch_dtype", "bfloat16", recipe=recipe.document())
