"""What cannot be right is refused with its arithmetic."""

import pytest

from vlm_lora_plugin.errors import HardwareError
from vlm_lora_plugin.frameworks.trainer import training_arguments
from vlm_lora_plugin.planning.deepspeed import deepspeed_settings
from vlm_lora_plugin.planning.deepspeed_checks import check_arguments, check_base, check_memory
from vlm_lora_plugin.planning.memory import MemoryEstimate, ParameterCounts, predict
from vlm_lora_plugin.planning.plan import plan_hardware
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.vocabulary import Hardware

GIB = 2**30
ONE_CARD = Hardware(1, 24)


@pytest.fixture(scope="module")
def monkey():
    return get_manager().family("monkey")


def planned(monkey, hardware, preset):
    return plan_hardware(resolve_recipe({"preset": preset, "hardware": hardware}, monkey), monkey)


def memory(**parts):
    return MemoryEstimate(
        **{**dict.fromkeys(("weights", "training_state", "gathered", "activations", "logits"), 0.0), **parts}
    )


def test_states_beyond_the_device_are_refused_with_their_sum(monkey):
    with pytest.raises(HardwareError, match=r"3\.47 weights \+ 131\.55 training state = 135\.0 GiB .* of 24 GiB"):
        planned(monkey, "1x24", "lora+llm").check()


def test_a_tight_fit_is_a_warning_with_the_sum(monkey):
    warning = planned(monkey, "1x24", "lora").check()
    assert "17.85 weights + 2.11 training state" in warning
    assert "more than the 24 GiB" in warning
    assert "(predicted)" in warning


def test_close_to_the_limit_is_said(monkey):
    assert "close to the 24 GiB" in check_memory(memory(weights=20.0, activations=1.5), ONE_CARD)


def test_room_is_no_warning(monkey):
    assert planned(monkey, "3x24", "lora").check() is None


def test_pinning_more_than_the_host_has_is_refused(monkey):
    small = {"gpus": 3, "gpu_memory": 24, "host_memory": 16, "offload": True}
    with pytest.raises(HardwareError, match=r"pins 18\.1 GiB .* which has 16 GiB"):
        planned(monkey, small, "lora").check()
    assert planned(monkey, {**small, "host_memory": 32}, "lora").check() is None


def test_two_nodes_pin_half_each(monkey):
    one = planned(monkey, {"gpus": 3, "gpu_memory": 24, "offload": True}, "lora").memory.pinned_host
    two = planned(monkey, {"gpus": 3, "gpu_memory": 24, "offload": True, "nodes": 2}, "lora").memory.pinned_host
    assert two == pytest.approx(one / 2)


def test_offload_without_known_host_memory_says_how_much_it_pins(monkey):
    plan = planned(monkey, {"gpus": 3, "gpu_memory": 24, "offload": True}, "lora")
    assert any("pins 18.1 GiB" in note for note in plan.notes)


def test_offloading_the_optimizer_of_lora_is_advised_against(monkey):
    own = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    recipe = resolve_recipe({"preset": "lora", "hardware": "3x24", "deepspeed": own}, monkey)
    assert any("Advised against" in note and "126 million" in note for note in plan_hardware(recipe, monkey).notes)


def test_offloading_the_optimizer_of_a_whole_language_model_is_not(monkey):
    plan = planned(monkey, {"gpus": 3, "gpu_memory": 24, "offload": True}, "lora+llm")
    assert not any("Advised against" in note for note in plan.notes)
    assert plan.memory.states < 24


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_quantised_base_may_be_held_whole(stage):
    base = {"quantization_config": {"quant_method": "bitsandbytes"}}
    assert check_base(base, stage, None, Hardware(3, 24)) is None


def test_zero_3_with_a_quantised_base_is_refused_with_the_arithmetic():
    load = ParameterCounts(frozen=9 * GIB, trainable=0, largest=1)
    with pytest.raises(HardwareError, match=r"quantised base \(gptq\)(.|\n)*18\.00 / 3 = 6\.00 GiB(.|\n)*4\.50 GiB"):
        check_base({"quantization_config": {"quant_method": "gptq"}}, 3, load, Hardware(3, 24))
    check_base({}, 3, load, Hardware(3, 24))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gradient_accumulation_steps": 3}, "gradient_accumulation_steps is 5, gradient_accumulation_steps is 3"),
        ({"max_grad_norm": 0.3}, "gradient_clipping is 1.0, max_grad_norm is 0.3"),
        ({"bf16": True}, "bf16.enabled is False, bf16 is True"),
    ],
)
def test_training_arguments_that_contradict_the_document_are_refused_with_both(monkey, tmp_path, changed, message):
    own = {"gradient_accumulation_steps": 5, "gradient_clipping": 1.0}
    hardware = {"gpus": 3, "gpu_memory": 32, "bf16": False, "zero_stage": 3}
    recipe = resolve_recipe({"preset": "lora", "hardware": hardware, "deepspeed": own}, monkey)
    document = deepspeed_settings(recipe, monkey, recipe.hardware.machine())
    check_arguments(document, training_arguments(recipe, tmp_path, use_cpu=True))
    with pytest.raises(HardwareError, match=message):
        check_arguments(document, training_arguments(recipe, tmp_path, use_cpu=True, **changed))


@pytest.mark.parametrize(("stage", "state"), [(1, 2 + 2 + 12 / 4), (2, 2 + (2 + 12) / 4), (3, 16 / 4)])
def test_each_stage_divides_one_more_of_2_and_2_and_12_bytes(stage, state):
    load = ParameterCounts(frozen=4 * GIB, trainable=GIB, largest=0)
    found = predict(load, None, {}, None, stage=stage, ranks=4)
    assert found.training_state == pytest.approx(state)
    assert found.weights == pytest.approx(2.0 if stage == 3 else 8.0)


def test_without_zero_what_learns_is_held_in_fp32():
    found = predict(ParameterCounts(frozen=0, trainable=GIB, largest=0), None, {}, None, stage=0, ranks=1)
    assert found.training_state == pytest.approx(4 + 4 + 8 + 2)
