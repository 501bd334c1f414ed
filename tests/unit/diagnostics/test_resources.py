"""What the meter measures, and what it makes of it."""

import mmap
from dataclasses import replace

import pytest
import torch

from vlm_lora_plugin.diagnostics import resources
from vlm_lora_plugin.diagnostics.resources import GIB, ResourceMeter, ResourceSummary

BATCH = {
    "input_ids": torch.ones(2, 5, dtype=torch.long),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    "labels": torch.tensor([[7, -100, 3, 4, -100], [-100, -100, 5, -100, -100]]),
    "pixel_values": torch.zeros(3, 3, 4, 4),
}
SUMMARY = ResourceSummary(
    data_wait_share=0.03,
    images=10,
    workers=1,
    checkpointed=(),
    device_memory_peak_gib=20.0,
    device_memory_total_gib=80.0,
    host_memory_peak_gib=4.0,
)


class Time:
    """Stands for the module ``time``: a clock that only sleeping moves, so that no busy machine can disturb it."""

    seconds = 0.0

    @classmethod
    def perf_counter(cls):
        return cls.seconds

    @classmethod
    def sleep(cls, seconds):
        cls.seconds += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(resources, "time", Time)


def step(meter, *, wait=0.0, compute=0.05, batches=(BATCH,)):
    with meter.fetching():
        Time.sleep(wait)
    meter.count(batches)
    Time.sleep(compute)
    meter.step_done()


def test_counts_are_tokens_without_padding_tokens_that_are_learnt_and_images():
    meter = ResourceMeter(torch.device("cpu"))
    step(meter)
    read = meter.read()
    # 8 tokens; labels count where a position predicts them, so not the first of a row: 3, 4 and 5.
    assert read["supervised_tokens_per_second"] / read["tokens_per_second"] == pytest.approx(3 / 8)
    assert read["images_per_second"] / read["tokens_per_second"] == pytest.approx(3 / 8)
    assert 0 < read["tokens_per_second"] <= 8 / 0.05


def test_images_of_different_sizes_come_as_a_list_and_are_counted_alike():
    meter = ResourceMeter(torch.device("cpu"))
    step(meter, batches=({**BATCH, "pixel_values": [torch.zeros(3, 4, side) for side in (4, 8, 12)]},))
    read = meter.read()
    assert read["images_per_second"] / read["tokens_per_second"] == pytest.approx(3 / 8)


def test_patches_of_several_images_in_one_tensor_are_not_taken_for_images():
    meter = ResourceMeter(torch.device("cpu"), lambda batch: len(batch["image_grid_thw"]))
    step(meter, batches=({**BATCH, "pixel_values": torch.zeros(96, 12), "image_grid_thw": torch.ones(2, 3)},))
    read = meter.read()
    assert read["images_per_second"] / read["tokens_per_second"] == pytest.approx(2 / 8)
    assert meter.summary(workers=0, checkpointed=()).images == 2


def test_counts_of_all_processes_are_added_up():
    meter = ResourceMeter(torch.device("cpu"))
    step(meter)
    read = meter.read(lambda counts: counts * torch.tensor([1, 1, 10]))
    assert read["images_per_second"] / read["tokens_per_second"] == pytest.approx(30 / 8)


def test_waiting_for_data_is_told_from_computing():
    meter = ResourceMeter(torch.device("cpu"))
    step(meter)  # the first fetch does not count
    meter.read()
    step(meter, wait=0.15, compute=0.05)
    assert meter.read()["data_wait_share"] == pytest.approx(0.75)
    step(meter, wait=0.0, compute=0.1)
    assert meter.read()["data_wait_share"] == 0


def test_the_first_fetch_which_starts_the_workers_is_left_out():
    meter = ResourceMeter(torch.device("cpu"))
    step(meter, wait=0.2, compute=0.02)
    assert meter.read()["data_wait_share"] == 0


def test_time_of_an_evaluation_is_left_out():
    meter = ResourceMeter(torch.device("cpu"))
    step(meter)
    meter.interrupted()
    Time.sleep(0.5)
    step(meter)
    assert meter.read()["tokens_per_second"] == pytest.approx(16 / 0.1)


def test_memory_is_in_gib_and_the_peak_outlives_what_was_freed():
    meter = ResourceMeter(torch.device("cpu"))
    block = mmap.mmap(-1, GIB // 4)  # pages of its own, which go back to the system when it is closed
    block.write(b"1" * (GIB // 4))
    step(meter)
    held = meter.read()
    block.close()
    step(meter)
    freed = meter.read()
    assert held["host_memory_gib"] - freed["host_memory_gib"] == pytest.approx(0.25, abs=0.1)
    assert freed["host_memory_peak_gib"] >= held["host_memory_gib"]
    assert "device_memory_gib" not in freed


def test_the_summary_says_that_compute_limited_a_run():
    assert SUMMARY.lines()[0] == "limited by compute: 3% of the time went into waiting for data"


def test_the_summary_says_that_images_starved_a_run():
    text = replace(SUMMARY, data_wait_share=0.6, workers=2).lines()[0]
    assert "limited by data: 60%" in text
    assert "reading images is too slow" in text
    assert "dataloader_num_workers (now 2)" in text


def test_text_that_starves_a_run_is_not_called_images():
    assert "reading rows" in replace(SUMMARY, data_wait_share=0.6, images=0).lines()[0]


def test_the_summary_says_that_checkpointing_was_on_without_need():
    summary = replace(SUMMARY, checkpointed=("vision", "language"))
    assert "checkpointing of vision, language may be without need: 60.0 GiB" in summary.lines()[-1]


@pytest.mark.parametrize(
    "change",
    [{"checkpointed": ()}, {"device_memory_peak_gib": 70.0}, {"device_memory_total_gib": None}],
    ids=["off", "full", "no device"],
)
def test_checkpointing_is_not_blamed(change):
    summary = replace(SUMMARY, **{"checkpointed": ("vision",), **change})
    assert not any("without need" in line for line in summary.lines())


class Clock:
    """Stands for a CUDA event: the moment at which the device came to it."""

    def __init__(self, enable_timing):
        assert enable_timing, "without it torch gives no elapsed time"
        self.at = None

    def record(self, stream):
        self.at = Time.perf_counter()

    def synchronize(self):
        assert self.at is not None, "read before it was recorded"

    def elapsed_time(self, later):
        return (later.at - self.at) * 1000


@pytest.fixture
def cuda_meter(monkeypatch):
    """A meter on its CUDA paths; what the driver would answer is replaced, the counts stay on the CPU."""
    answers = {
        "memory_allocated": 2 * GIB,
        "max_memory_allocated": 3 * GIB,
        "max_memory_reserved": 4 * GIB,
        "mem_get_info": (70 * GIB, 80 * GIB),
        "current_stream": None,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    meter = ResourceMeter(torch.device("cpu"))
    meter._on_cuda = True
    return meter


def test_waiting_is_timed_by_events_in_the_devices_own_queue(cuda_meter):
    step(cuda_meter)
    cuda_meter.read()
    step(cuda_meter, wait=0.15, compute=0.05)
    assert cuda_meter.read()["data_wait_share"] == pytest.approx(0.75)


def test_many_fetches_between_two_readings_are_settled_on_the_way(cuda_meter):
    for _ in range(600):
        step(cuda_meter, wait=0.01, compute=0.03)
        assert len(cuda_meter._waits) <= 256
    # The first fetch does not count: 599 waits, 600 computations.
    assert cuda_meter.read()["data_wait_share"] == pytest.approx(5.99 / (5.99 + 18.0))


def test_memory_of_the_device_is_read_in_gib(cuda_meter):
    step(cuda_meter)
    read = cuda_meter.read()
    assert (read["device_memory_gib"], read["device_memory_peak_gib"]) == (2.0, 3.0)


def test_the_summary_has_what_the_allocator_held_of_the_whole_device(cuda_meter):
    step(cuda_meter)
    cuda_meter.read()
    summary = cuda_meter.summary(workers=1, checkpointed=["vision"])
    assert (summary.device_memory_peak_gib, summary.device_memory_total_gib) == (4.0, 80.0)
    assert any("gradient checkpointing of vision may be without need: 76.0 GiB" in line for line in summary.lines())
