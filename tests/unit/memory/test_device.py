"""From a traced step to what one device holds."""

import pytest

from vlm_lora_plugin.memory.device import device_memory
from vlm_lora_plugin.memory.live_bytes import Moment, Use
from vlm_lora_plugin.memory.step import StepMemory
from vlm_lora_plugin.planning.memory import GIB, RESERVE_GIB, ParameterCounts
from vlm_lora_plugin.vocabulary import Hardware

USES = {
    Use("frozen weights"): 16 * GIB,
    Use("trainable weights"): GIB,
    Use("gradients"): GIB,
    Use("optimizer states"): 2 * GIB,
    Use("forward", "vision"): 2 * GIB,
    Use("forward"): GIB // 2,
    Use("backward", "language"): GIB,
}
STEP = StepMemory(Moment(sum(USES.values()), "backward", "language", "aten.mm", USES), 19 * GIB, {}, (), 1, {})
LOAD = ParameterCounts(frozen=8 * GIB, trainable=GIB // 4, largest=1000)


def parts(device):
    return {part.name: part.bytes / GIB for part in device.parts}


def test_in_one_process_everything_is_as_traced_and_the_reserve_is_stated():
    device = device_memory(STEP, LOAD, Hardware(1, 24.0))
    assert parts(device) == {
        "frozen weights": 16,
        "trainable weights": 1,
        "gradients": 1,
        "optimizer states": 2,
        "saved activations: vision": 2,
        "temporaries: language": 1,
        "saved activations: loss and splicing": 0.5,
        "reserve": RESERVE_GIB,
    }
    assert device.total == STEP.peak.bytes + RESERVE_GIB * GIB
    assert device.usable == pytest.approx(23.6 * GIB)
    assert device.fits is False


def test_without_a_machine_nothing_says_whether_it_fits():
    device = device_memory(STEP, LOAD)
    assert (device.usable, device.headroom, device.fits) == (None, None, None)


def test_several_devices_without_zero_copy_gradients_into_buckets():
    device = device_memory(STEP, LOAD, Hardware(2, 40.0))
    assert parts(device)["gradient buckets"] == 1
    assert any("DistributedDataParallel" in line for line in device.assumptions)


def test_zero_3_divides_the_states_and_leaves_the_activations():
    device = device_memory(STEP, LOAD, Hardware(4, 24.0), stage=3)
    shown = parts(device)
    assert shown["frozen weights"] == 4
    assert shown["training state"] == 16 / 4 / 4
    assert shown["saved activations: vision"] == 2
    assert "gradients" not in shown
    assert any("arXiv:1910.02054" in line for line in device.assumptions)


def test_offloading_pins_host_memory():
    device = device_memory(STEP, LOAD, Hardware(4, 24.0), stage=3, offload=True)
    assert "frozen weights" not in parts(device)
    assert device.pinned_host > 15 * GIB
