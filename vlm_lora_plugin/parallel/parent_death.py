"""A launcher that dies takes what it started with it: ranks, ms-swift, and what these start in turn.

Linux: each launched process asks for a signal at its parent's death, then checks that the parent still is the one it
was; a signal does not reach grandchildren, so each also watches every launcher above it. Elsewhere it waits for the
end of a pipe that the launcher holds, and where there is no such pipe it looks once a second.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlm_lora_plugin.processes import started_at

LAUNCHERS = "VLM_LORA_LAUNCHERS"
"""Environment variable: the launchers above a process, outermost first, ``PID/STARTED/PIPE`` joined by commas."""

_PR_SET_PDEATHSIG = 1
_PIPES = sys.platform != "linux" and hasattr(os, "mkfifo")
_PAUSE = 1.0  # seconds between looks where nothing tells


@contextmanager
def as_launcher() -> Iterator[None]:
    """While it lasts, processes that this one starts know it as a launcher, and end when it dies."""
    before = os.environ.get(LAUNCHERS)
    with _pipe() as path:
        own = f"{os.getpid()}/{started_at(os.getpid()) or ''}/{path}"
        os.environ[LAUNCHERS] = f"{before},{own}" if before else own
        try:
            yield
        finally:
            if before is None:
                del os.environ[LAUNCHERS]
            else:
                os.environ[LAUNCHERS] = before


def die_with_launchers() -> None:
    """End this process, at once and without a word, as soon as a launcher above it dies; nothing where there is none.

    Every launched process calls this when it begins.
    """
    above = os.environ.get(LAUNCHERS)
    if not above or above in _watching:
        return
    _watching.add(above)
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the signal was asked for
            _end()
    for launcher in above.split(","):
        pid, started, pipe = launcher.split("/", 2)
        if int(pid) == os.getpid():
            continue
        wait = _waiting_for(int(pid), pipe)
        if started_at(int(pid)) != started:
            _end()
        threading.Thread(target=_end_after, args=(wait,), name="vlm-lora-launcher", daemon=True).start()


_watching: set[str] = set()


def _waiting_for(pid: int, pipe: str) -> Callable[[], None]:
    """Return what waits for a process's end; it must be alive afterwards for that to mean anything."""
    if pipe:
        handle = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        return lambda: _until_hung_up(handle)
    if sys.platform == "linux":
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            _end()
        except OSError:  # a kernel before 5.3, or a sandbox that forbids it
            pass
        else:
            return lambda: _until_hung_up(handle)
    started = started_at(pid)

    def look() -> None:
        while started_at(pid) == started:
            time.sleep(_PAUSE)

    return look


def _until_hung_up(handle: int) -> None:
    poll = select.poll()
    poll.register(handle, select.POLLIN | select.POLLHUP)
    poll.poll()


def _end_after(wait: Callable[[], None]) -> None:
    wait()
    _end()


def _end() -> None:
    if sys.platform == "win32":
        os.abort()  # SIGTERM there ends a process just as bluntly, but only after its handlers
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit(1)  # not reached


@contextmanager
def _pipe() -> Iterator[str]:
    """Hold the end of a pipe that descendants open by its path, where the system does not tell of a process's end."""
    if not _PIPES:
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="vlm-lora-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "launcher"
        os.mkfifo(path, 0o600)
        handle = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # children that are started do not inherit it
        try:
            yield str(path)
        finally:
            with suppress(OSError):
                os.close(handle)
