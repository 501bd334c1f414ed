"""Which process something is, so that another one can tell whether it still lives."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_START_FIELD = 19  # of /proc/PID/stat, counted after the name in brackets: clock ticks between boot and start
_MOST = 200  # characters of a command line


@dataclass(frozen=True)
class ProcessMark:
    """One process of one machine.

    Attributes:
        host: The machine's name.
        boot: What tells one start of the machine from the next; empty where nothing does.
        space: The namespace in which process numbers count: containers have their own.
        pid: The process's number.
        started: When it was started, as its system counts it.
        command: Its command line, shortened.
    """

    host: str
    boot: str
    space: str
    pid: int
    started: str
    command: str

    @classmethod
    def of_this(cls) -> ProcessMark:
        """Return that of this process."""
        command = " ".join([_program(), *sys.argv[1:]])
        shown = "".join(letter if letter.isprintable() else "?" for letter in command[:_MOST])
        pid = os.getpid()
        return cls(socket.gethostname(), _boot(), _space(), pid, started_at(pid) or "", shown)

    @classmethod
    def unknown(cls) -> ProcessMark:
        """Return that of a process that did not say who it is."""
        return cls("", "", "", 0, "", "it does not say who it is")

    def lives(self) -> bool | None:
        """Return whether it is still running; None where that cannot be seen from here."""
        if (self.host, self.boot, self.space) != (socket.gethostname(), _boot(), _space()):
            return None
        return started_at(self.pid) == self.started

    def __str__(self) -> str:
        """Return it in words."""
        return f"process {self.pid} on {self.host} ({self.command})" if self.pid else self.command


def _program() -> str:
    """Return the name of what this process runs; of ``python -m package`` the package's."""
    path = Path(sys.argv[0] or "python")
    return path.parent.name if path.name == "__main__.py" else path.name


def started_at(pid: int) -> str | None:
    """Return when a process of this machine was started, in a form that no other process of its number has.

    None where there is no such process, or where it has ended and only waits to be noticed.
    """
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text("utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[_START_FIELD]
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.0f}"
    except psutil.Error:
        return None


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    return ""


def _space() -> str:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""
