"""What a run takes and where its time goes: memory, tokens and images a second, and waiting for data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from vlm_lora_plugin.contract import Architecture
from vlm_lora_plugin.models.loss import IGNORED

GIB = 2**30

STARVED = 0.2
"""Share of the time spent waiting for data from which on the data is said to have limited the run."""

ROOMY = 0.5
"""Share of the device's memory up to which a peak is said to leave room for training without checkpointing."""

_MOST_WAITS = 256  # events held between two readings

CountImages = Callable[[Mapping[str, Any]], int]
"""Returns how many images a batch holds: ``count_images`` of the model's architecture."""

_ITEMS = Architecture(()).count_images

Sum = Callable[[torch.Tensor], torch.Tensor]
"""Adds counts up over all processes."""


@dataclass(frozen=True)
class ResourceSummary:
    """What limited a run, as far as this process saw.

    Attributes:
        data_wait_share: Share of the time in which nothing was computed because the batch was not there yet.
        images: How many were trained on.
        workers: DataLoader workers.
        checkpointed: Components whose activations were recomputed.
        device_memory_peak_gib: The most that the device's allocator held; None without CUDA.
        device_memory_total_gib: What the device has; None without CUDA.
        host_memory_peak_gib: The most that this process held at the end of a step, its workers not included.
    """

    data_wait_share: float
    images: int
    workers: int
    checkpointed: tuple[str, ...]
    device_memory_peak_gib: float | None
    device_memory_total_gib: float | None
    host_memory_peak_gib: float

    @property
    def starved(self) -> bool:
        """Whether waiting for data, not computing, limited the run."""
        return self.data_wait_share >= STARVED

    @property
    def checkpointed_without_need(self) -> bool:
        """Whether activations were recomputed although the device had much memory left."""
        if not self.checkpointed or self.device_memory_peak_gib is None or self.device_memory_total_gib is None:
            return False
        return self.device_memory_peak_gib <= ROOMY * self.device_memory_total_gib

    def lines(self) -> list[str]:
        """Return it in sentences, one a line."""
        share = f"{self.data_wait_share:.0%} of the time went into waiting for data"
        if self.starved:
            cause = "reading images" if self.images else "reading rows"
            found = [
                f"limited by data: {share}, {cause} is too slow; "
                f"raise training.dataloader_num_workers (now {self.workers})"
                + (" or shrink the images" if self.images else "")
            ]
        else:
            found = [f"limited by compute: {share}"]
        if self.device_memory_peak_gib is None or self.device_memory_total_gib is None:
            return [*found, f"memory: host {self.host_memory_peak_gib:.1f} GiB at the peak"]
        peak, total = self.device_memory_peak_gib, self.device_memory_total_gib
        found.append(
            f"memory: device {peak:.1f} of {total:.1f} GiB, host {self.host_memory_peak_gib:.1f} GiB at the peak"
        )
        if self.checkpointed_without_need:
            found.append(
                f"gradient checkpointing of {', '.join(self.checkpointed)} may be without need: {total - peak:.1f} GiB "
                "of the device stayed free; gradient_checkpointing.COMPONENT=false is faster if it still fits"
            )
        return found


class ResourceMeter:
    """Measures one run in this process. A loop says when it fetches batches, which, and when a step is done.

    Nothing here waits for the device, except :meth:`read`, which is meant for where the loss is read anyway:
    counts are added up where the batch lies, and waiting is timed by events in the device's own queue. So
    a host that is ahead of the device and waits for data meanwhile is not counted as waiting. The first fetch
    is left out: it starts the workers, and in a resumed run passes over what was seen before.

    Resets the CUDA peak statistics of the device.

    Args:
        device: Where the model is.
        count_images: Counts the images of a batch; by default the length of ``pixel_values``.
    """

    def __init__(self, device: torch.device, count_images: CountImages = _ITEMS) -> None:
        self._device = device
        self._count_images = count_images
        self._on_cuda = device.type == "cuda"
        if self._on_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        self._process = psutil.Process()
        self._host_peak = self._process.memory_info().rss
        self._fetched = False
        self._counts = self._no_counts()
        self._images = 0
        self._waits: list[tuple[Any, Any]] = []
        self._waited = self._all_waited = self._all_seconds = 0.0
        self._since: float | None = None
        self._step_end = 0.0
        self._interrupted = False

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Time a fetch of the next step's batches."""
        now = time.perf_counter()
        if self._since is not None and self._interrupted:
            self._since += now - self._step_end
        self._interrupted = False
        if self._since is None and self._fetched:
            self._since = now
        before = self._mark()
        yield
        if self._fetched:
            self._waits.append((before, self._mark()))
            if len(self._waits) >= _MOST_WAITS:
                self._settle()
        elif self._since is None:
            self._since = time.perf_counter()
        self._fetched = True

    def count(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Count tokens without padding, supervised tokens and images of a step's batches."""
        for batch in batches:
            ids, mask, labels = (batch.get(key) for key in ("input_ids", "attention_mask", "labels"))
            if mask is not None:
                self._counts[0] += mask.sum()
            elif ids is not None:
                self._counts[0] += ids.numel()
            if labels is not None:
                self._counts[1] += (labels[:, 1:] != IGNORED).sum()
            images = self._count_images(batch)
            self._counts[2] += images
            self._images += images

    def step_done(self) -> None:
        """Note the end of a step; host memory is looked at now."""
        self._step_end = time.perf_counter()
        self._host_peak = max(self._host_peak, self._process.memory_info().rss)

    def interrupted(self) -> None:
        """Leave the time since the last step out until the next fetch: it was spent on an evaluation or on saving."""
        self._interrupted = True

    def read(self, add_up: Sum = lambda counts: counts) -> dict[str, float]:
        """Return what was measured since the last reading, and begin anew.

        Args:
            add_up: Adds counts up over all processes; all call this at the same step then.

        Returns:
            ``tokens_per_second`` (no padding), ``supervised_tokens_per_second`` and ``images_per_second`` over
            all processes, ``data_wait_share`` from 0 to 1, and ``host_memory_gib``, ``host_memory_peak_gib``,
            with CUDA also ``device_memory_gib``, ``device_memory_peak_gib``, of this process.
        """
        tokens, supervised, images = add_up(self._counts).tolist()  # after this the device has done all of it
        now = time.perf_counter()
        seconds = now - self._since if self._since is not None else 0.0
        self._settle()
        waited = min(self._waited, seconds)
        self._all_seconds += seconds
        self._all_waited += waited
        self._since, self._waited, self._counts = None, 0.0, self._no_counts()
        rates = {}
        if seconds > 0:
            rates = {
                "tokens_per_second": tokens / seconds,
                "supervised_tokens_per_second": supervised / seconds,
                "images_per_second": images / seconds,
                "data_wait_share": waited / seconds,
            }
        return {**rates, **self._memory()}

    def summary(self, *, workers: int, checkpointed: Sequence[str]) -> ResourceSummary:
        """Return what limited the run, from all readings.

        Args:
            workers: DataLoader workers.
            checkpointed: Components whose activations are recomputed.
        """
        peak = total = None
        if self._on_cuda:
            peak = torch.cuda.max_memory_reserved(self._device) / GIB
            total = torch.cuda.mem_get_info(self._device)[1] / GIB
        return ResourceSummary(
            data_wait_share=self._all_waited / self._all_seconds if self._all_seconds > 0 else 0.0,
            images=self._images,
            workers=workers,
            checkpointed=tuple(checkpointed),
            device_memory_peak_gib=peak,
            device_memory_total_gib=total,
            host_memory_peak_gib=self._host_peak / GIB,
        )

    def _memory(self) -> dict[str, float]:
        host = self._process.memory_info().rss
        self._host_peak = max(self._host_peak, host)
        memory = {"host_memory_gib": host / GIB, "host_memory_peak_gib": self._host_peak / GIB}
        if self._on_cuda:
            memory["device_memory_gib"] = torch.cuda.memory_allocated(self._device) / GIB
            memory["device_memory_peak_gib"] = torch.cuda.max_memory_allocated(self._device) / GIB
        return memory

    def _no_counts(self) -> torch.Tensor:
        return torch.zeros(3, dtype=torch.int64, device=self._device)

    def _mark(self) -> Any:
        """Return a point in time of what computes: the device's queue, or this process."""
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _settle(self) -> None:
        for before, after in self._waits:
            if self._on_cuda:
                after.synchronize()
                self._waited += before.elapsed_time(after) / 1000
            else:
                self._waited += after - before
        self._waits.clear()
