"""Ranks tell each other that they live and how far they are, so that one that stops or hangs is named in a minute.

Libraries say nothing until the process group's timeout, which is half an hour, and then not who was missing. A thread
of each rank writes a :class:`~vlm_lora_plugin.parallel.waiting.Beat` into the store in which the ranks have found each
other; the lowest rank that lives says who is waited for, and where.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch
from torch.distributed import Store, TCPStore, distributed_c10d  # type: ignore[attr-defined]

from vlm_lora_plugin.errors import TrainingError
from vlm_lora_plugin.outside.json_text import parse_json
from vlm_lora_plugin.parallel.agreement import several_ranks
from vlm_lora_plugin.parallel.waiting import Beat, Waiting, who_is_missing

BEAT = 5.0
"""Seconds between two beats."""

PATIENCE = 40.0
"""Seconds after which a rank is missed: with the time between two beats it is named within a minute."""

_COMMUNICATION = (
    "torch/distributed/",
    "torch/nn/parallel/distributed.py",
    "torch/autograd/graph.py",
    "deepspeed/comm/",
    "deepspeed/runtime/zero/",
)
"""Where a rank waits for others; the backward pass is where DistributedDataParallel's part of it runs."""

_BROKEN = re.compile(r"time[d ]*out|connection|peer|abort", re.IGNORECASE)
_STDLIB = Path(sysconfig.get_paths()["stdlib"]).as_posix() + "/"


class _Place:
    """How far this process is: the same numbers on all ranks of a job."""

    def __init__(self) -> None:
        self.number, self.doing, self.since = 0, "starting", time.monotonic()

    def move(self, doing: str, *, counts: bool) -> None:
        self.number, self.doing, self.since = self.number + counts, doing, time.monotonic()


_place = _Place()
_running: list[Heartbeat] = []
_listeners: list[Callable[[str], None]] = []


def now_in(doing: str, *, counts: bool = True) -> None:
    """Note what this rank does from now on; costs nothing.

    Args:
        doing: In words: ``step 12, backward pass``.
        counts: All ranks come here equally often, so that who has done so less often is behind.
    """
    _place.move(doing, counts=counts)


def tell_also(listener: Callable[[str], None]) -> None:
    """Give what is said to a function, too; what it raises is passed over."""
    _listeners.append(listener)


def start_heartbeat(timeout: float) -> None:
    """Begin to beat and to watch the others; nothing in a process alone, or where it has begun already.

    The ranks must have found each other by ``MASTER_ADDR`` and ``MASTER_PORT``, as with every launcher; otherwise
    nothing is watched.

    Args:
        timeout: Seconds that a rank waits for others before it gives up.
    """
    if not several_ranks():
        return
    set_timeout(timeout)
    if _running or not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return
    heartbeat = Heartbeat(torch.distributed.get_rank(), torch.distributed.get_world_size())
    _running.append(heartbeat)
    heartbeat.start()
    atexit.register(heartbeat.end)


def set_timeout(seconds: float) -> None:
    """Have the process group wait so long and no longer: on a CPU, TrainingArguments keeps its ``ddp_timeout`` back."""
    change = getattr(distributed_c10d, "set_timeout", None) or distributed_c10d._set_pg_timeout
    if torch.distributed.get_backend() == "gloo":  # others were made with it
        change(timedelta(seconds=seconds))


@contextmanager
def naming_the_missing() -> Iterator[None]:
    """Turn an error of communication into one that names the rank that was missing.

    Raises:
        TrainingError: The ranks cannot work together while one is missing.
    """
    try:
        yield
    except RuntimeError as error:  # torch's class of all that goes wrong between ranks
        lost = missed(error)
        if lost is None:
            raise
        raise lost from error


def missed(error: RuntimeError) -> TrainingError | None:
    """Return what to raise for an error of communication while a rank is missing; None for any other error."""
    found = _running[0].waiting() if _running else None
    if found is None or not _BROKEN.search(str(error)):
        return None
    return TrainingError(
        f"The ranks no longer work together: {str(error).splitlines()[0]}",
        why=found.text,
        fix="See what that rank does, or what became of its machine, and go on with --resume. A rank that is only slow "
        "is given more time by distributed.timeout in the recipe.",
    )


class Heartbeat:
    """Beats for one rank and watches the others, by threads that end with the process.

    Args:
        rank: This process's.
        ranks: How many there are.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks
        self._number, self._ended = 0, False
        self._main = threading.main_thread().ident
        self._asked_at: float | None = None  # when a question to the store was put that it has not answered
        self._heard: dict[int, tuple[Beat, float]] = {}  # and when that was first seen
        self._patience, self._said_at, self._said = PATIENCE, 0.0, False

    def start(self) -> None:
        """Start both threads: one may wait for the store for as long as its holder is stopped."""
        for target in (self._exchange_forever, self._watch_forever):
            threading.Thread(target=target, name="vlm-lora heartbeat", daemon=True).start()

    def end(self) -> None:
        """Say that this rank has done its work."""
        self._ended = True
        with suppress(RuntimeError):
            self._connect(timeout=1.0).set(self._key(self._rank), json.dumps(self._own().document()))

    def waiting(self) -> Waiting | None:
        """Return who is waited for."""
        now = time.monotonic()
        asked = self._asked_at
        if asked is not None and now - asked >= PATIENCE:
            return self._without_store(now - asked)
        heard = dict(self._heard)
        return who_is_missing(
            {rank: beat for rank, (beat, _) in heard.items()},
            {rank: now - since for rank, (_, since) in heard.items()},
            PATIENCE,
        )

    def _without_store(self, seconds: float) -> Waiting:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        launched = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        holder = "the launcher of the first machine" if launched else "rank 0"
        own = self._own()
        return Waiting(
            () if launched else (0,),
            f"{holder[0].upper()}{holder[1:]}, which holds what the ranks share at {place}, has not answered for "
            f"{seconds:.0f} s: it is stopped, or its machine is out of reach. Rank {self._rank} is in {own.doing}, at "
            f"{own.where}.",
        )

    def _exchange_forever(self) -> None:
        store = None
        while not self._ended:
            self._asked_at = time.monotonic()
            try:
                store = store or self._connect()
                self._exchange(store)
            except RuntimeError:  # its holder is gone; the watching thread says so after a while
                store = None
                time.sleep(BEAT)
                continue
            self._asked_at = None
            time.sleep(BEAT)

    def _exchange(self, store: Store) -> None:
        store.set(self._key(self._rank), json.dumps(self._own().document()))
        keys = {rank: self._key(rank) for rank in range(self._ranks)}
        known = {rank: key for rank, key in keys.items() if rank in self._heard or store.check([key])}
        now = time.monotonic()
        for rank, text in zip(known, store.multi_get(list(known.values())), strict=True):
            beat = Beat(**parse_json(text))
            if rank not in self._heard or self._heard[rank][0].number != beat.number:
                self._heard[rank] = beat, now

    def _watch_forever(self) -> None:
        while not self._ended:
            time.sleep(min(BEAT, 1.0))
            self._tell(self.waiting())

    def _tell(self, found: Waiting | None) -> None:
        now = time.monotonic()
        if found is None:
            if self._said:
                _say(f"Rank {self._rank}: the ranks work together again.")
            self._said, self._patience = False, PATIENCE
            return
        if self._first_to_speak(found) and (not self._said or now - self._said_at >= self._patience):
            _say(found.text)
            self._patience = 2 * self._patience if self._said else self._patience
            self._said, self._said_at = True, now

    def _first_to_speak(self, found: Waiting) -> bool:
        lost = {rank for rank, (_, since) in self._heard.items() if time.monotonic() - since >= PATIENCE}
        silent = lost | (set(found.ranks) if self._asked_at is not None else set())
        return self._rank == min(set(range(self._ranks)) - silent, default=self._rank)

    def _own(self) -> Beat:
        self._number += 1
        where, communicates = _where(sys._current_frames().get(self._main or 0))
        seconds = time.monotonic() - _place.since
        return Beat(
            self._number, socket.gethostname(), os.getpid(), _place.number, _place.doing, seconds, where, communicates,
            self._ended,
        )  # fmt: skip

    def _connect(self, timeout: float | None = None) -> Store:
        return TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=timeout or PATIENCE),
            wait_for_workers=False,
        )

    def _key(self, rank: int) -> str:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return f"vlm_lora/heartbeat/{attempt}/{rank}"


def _where(frame: FrameType | None) -> tuple[str, bool]:
    """Return what a thread is in, without what the standard library does for it, and whether it communicates."""
    found: FrameType | None = None
    communicates = False
    while frame is not None:
        file = Path(frame.f_code.co_filename).as_posix()
        of_library = "site-packages" not in file and file.startswith(_STDLIB)
        if not of_library and found is None:
            found = frame
            communicates = any(part in file for part in _COMMUNICATION)
        frame = frame.f_back
    if found is None:
        return "an unknown place", False
    file = "/".join(Path(found.f_code.co_filename).parts[-2:])
    return f"{found.f_code.co_name} ({file}:{found.f_lineno})", communicates


def _say(text: str) -> None:
    sys.stderr.write(f"vlm-lora: {text}\n")
    sys.stderr.flush()
    for listener in _listeners:
        with suppress(Exception):  # a report must not end the watch
            listener(text)
