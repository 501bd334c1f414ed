"""What people write for a machine, and what is not a machine."""

import pytest

from vlm_lora_plugin.errors import HardwareError, RecipeError
from vlm_lora_plugin.hardware import check_hardware, parse_hardware
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.recipe import Recipe
from vlm_lora_plugin.vocabulary import Hardware


@pytest.mark.parametrize(
    ("text", "gpus", "memory"), [("1x24", 1, 24), ("3x24", 3, 24), (" 8 x 80 ", 8, 80), ("2X23.6", 2, 23.6)]
)
def test_the_short_form_is_devices_times_memory(text, gpus, memory):
    assert parse_hardware(text) == Hardware(gpus, memory)


@pytest.mark.parametrize("text", ["", "24", "3x", "x24", "3x24GB", "a100", "-1x24", "3*24", "1x24, 1x32"])
def test_other_text_is_refused_with_examples(text):
    with pytest.raises(HardwareError, match=r"not a hardware description(.|\n)*3x24"):
        parse_hardware(text)


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (Hardware(0, 24), "gpus is 0"),
        (Hardware(1, 24, nodes=0), "nodes is 0"),
        (Hardware(1, 0), "gpu_memory is 0 GiB"),
        (Hardware(1, float("nan")), "gpu_memory is nan GiB"),
        (Hardware(1, 24, host_memory=-1), "host_memory is -1 GiB"),
    ],
)
def test_impossible_numbers_are_refused(machine, message):
    with pytest.raises(HardwareError, match=message):
        check_hardware(machine)


def test_memory_in_mib_is_recognised():
    with pytest.raises(HardwareError, match=r"24576 MiB are 24 GiB"):
        check_hardware(Hardware(3, 24576))


def test_a_recipe_takes_the_short_form_and_the_long_one():
    short = Recipe.parse({"hardware": "3x24"}).hardware
    long = Recipe.parse({"hardware": {"gpus": 3, "gpu_memory": 24}}).hardware
    assert short == long
    assert short.machine() == Hardware(3, 24.0)


@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        ("3y24", "'3y24' is not a hardware description"),
        ({"gpus": 3}, "hardware.gpu_memory is needed"),
        ({"gpus": 3, "gpu_memory": 24, "gpu": 1}, "unknown key"),
        ({"gpus": 3, "gpu_memory": 24, "offload": True, "zero_stage": 2}, "offload .* zero_stage is 2"),
        ({"gpus": 0, "gpu_memory": 24}, "greater than or equal to 1"),
    ],
)
def test_a_recipe_refuses_what_is_no_hardware(hardware, message):
    with pytest.raises(RecipeError, match=message):
        resolve_recipe({"hardware": hardware}, get_manager().family("monkey"))


def test_the_memory_may_come_from_another_place_than_the_number_of_devices():
    family = get_manager().family("monkey")
    recipe = resolve_recipe({"hardware": {"gpus": 3}}, family, {"hardware": {"gpu_memory": 24}})
    assert recipe.hardware.machine() == Hardware(3, 24.0)


@pytest.mark.parametrize(
    "document", [{"deepspeed": {"gradient_clipping": 1.0}}, {"training": {"global_batch_size": 8}}]
)
def test_keys_that_need_a_machine_are_refused_without_one(document):
    with pytest.raises(RecipeError, match="no effect without `hardware`"):
        resolve_recipe(document, get_manager().family("monkey"))
