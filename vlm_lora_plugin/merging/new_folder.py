"""A folder that appears whole or not at all, and of which a killed process leaves nothing as large as a model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from vlm_lora_plugin.checkpoint.disk import free_bytes, in_words
from vlm_lora_plugin.checkpoint.lock import FolderLock, Holder
from vlm_lora_plugin.checkpoint.space import check_names
from vlm_lora_plugin.errors import OutputError
from vlm_lora_plugin.parallel.children import environment, isolated_line

_PARTIAL, _LOCKED = ".partial-", ".vlm-lora.lock"

_CLEANER = "import shutil, sys; sys.stdin.read(); shutil.rmtree(sys.argv[1], ignore_errors=True)"
"""Waits for the end of a pipe that we hold, then removes the unfinished folder; there is none when we were done."""

_ASKED_TO_END = ("SIGTERM", "SIGHUP")


@contextmanager
def new_folder(output: Path, *, take_over: bool = False) -> Iterator[Path]:
    """Give a temporary folder that becomes ``output`` at the end, unless something fails.

    Another process removes it should this one be killed; what neither lived to remove, the next one does.

    Args:
        output: The new folder; must not exist.
        take_over: Take its place from another process that seems to be at work on it.

    Raises:
        OutputError: It exists, its name is too long, it cannot be written, or another process is making it.
    """
    check_names(output)
    refuse_existing(output)
    with FolderLock(_lock_of(output), output, take_over=take_over) as lock:
        _remove_left_behind(output)
        temporary = output.with_name(f".{output.name}{_PARTIAL}{uuid.uuid4().hex[:8]}")
        with _ended_by_signals(), _removed_when_killed(temporary):
            try:
                temporary.mkdir()
                yield temporary
                lock.check()
                refuse_existing(output)
                os.replace(temporary, output)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(output: Path) -> None:
    """Refuse a folder that exists.

    Raises:
        OutputError: It does.
    """
    if os.path.lexists(output):
        raise OutputError(f"{output} exists already", fix="Give a folder that does not, or remove it first.")


def check_room(output: Path, needed: int) -> None:
    """Refuse to begin what is not going to fit.

    Raises:
        OutputError: Says what is needed and what is free.
    """
    free = free_bytes(output.parent)
    if needed > free:
        raise OutputError(
            f"The merged model does not fit on the disk of {output}: it needs {in_words(needed)}, {in_words(free)} are "
            "free",
            fix="Free space, or give a folder on another disk.",
        )


def _lock_of(output: Path) -> Path:
    return output.with_name(f".{output.name}{_LOCKED}")


def _remove_left_behind(output: Path) -> None:
    """Remove unfinished folders beside one that we hold the lock for, whose makers are dead."""
    for path in output.parent.glob(f".*{_PARTIAL}*"):
        name = path.name[1:].rpartition(_PARTIAL)[0]
        lock = _lock_of(output.with_name(name))
        holder = Holder.of(lock) if name != output.name else None
        if path.is_symlink() or not path.is_dir() or (holder is not None and holder.lives(time.time())):
            continue
        shutil.rmtree(path, ignore_errors=True)
        if holder is not None:
            lock.unlink(missing_ok=True)


@contextmanager
def _removed_when_killed(folder: Path) -> Iterator[None]:
    process = subprocess.Popen(
        [*isolated_line(_CLEANER), str(folder.absolute())],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what ends our whole group must not end it
    )
    try:
        yield
    finally:
        process.communicate()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Turn signals that ask this process to end into an exception, so that it tidies up."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _ASKED_TO_END if hasattr(signal, name)]
    before = {number: signal.signal(number, end) for number in numbers if signal.getsignal(number) is signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
