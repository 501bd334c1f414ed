"""One run in a folder at a time: a lock file that says who holds it, made by a hard link, which NFS does in one step.

The holder renews its time every 15 seconds. Of a holder on this machine, process number and start time tell whether it
lives; any other is dead once its file is older than two minutes.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from vlm_lora_plugin.errors import OutputError
from vlm_lora_plugin.outside.json_text import read_json
from vlm_lora_plugin.processes import ProcessMark

LOCK = ".vlm-lora.lock"
"""The lock's name in an output folder."""

RENEWED_EVERY = 15.0
DEAD_AFTER = 120.0

_GUARD = ".taking"  # beside a lock while a dead one is replaced, or the own one removed
_TRIES, _PAUSE = 50, 0.1


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, and when it was renewed last, in seconds since the epoch by the file system's clock."""

    process: ProcessMark
    token: str
    renewed: float

    @classmethod
    def of(cls, path: Path) -> Holder | None:
        """Read a lock; None where there is none. A file that says nothing is somebody's who is just writing it."""
        try:
            renewed = path.stat().st_mtime
            document = read_json(path)
            return cls(ProcessMark(**document["process"]), str(document["token"]), renewed)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls(ProcessMark.unknown(), "", renewed)

    def lives(self, now: float) -> bool:
        """Return whether the holder is still at work."""
        known = self.process.lives()
        return now - self.renewed <= DEAD_AFTER if known is None else known


class FolderLock:
    """A lock on a folder; ``with FolderLock(folder / LOCK, folder): ...``.

    Args:
        path: The lock file. Folders that it needs are made, and removed again with it when nothing is in them.
        folder: What it locks, for messages.
        take_over: Take it from whoever holds it.
    """

    def __init__(self, path: Path, folder: Path, *, take_over: bool = False) -> None:
        self._path, self._folder, self._take_over = path, folder, take_over
        self._token, self._process = uuid.uuid4().hex, os.getpid()
        self._made: list[Path] = []
        self._stop = threading.Event()

    def __enter__(self) -> FolderLock:
        """Take the lock.

        Raises:
            OutputError: Another run that lives holds it, or the folder cannot be written to.
        """
        try:
            self._acquire()
        except OSError as error:
            self._remove_made()
            raise OutputError(
                f"Nothing can be written to {self._folder}: {error.strerror or error}", fix="Give another folder."
            ) from None
        except OutputError:
            self._remove_made()
            raise
        _held[_key(self._folder)] = self
        threading.Thread(target=self._renew, name="vlm-lora-lock", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back, unless it was taken over."""
        if os.getpid() != self._process:  # a fork has no part in it
            return
        self._stop.set()
        _held.pop(_key(self._folder), None)
        with suppress(OSError):
            if self._guarded():
                try:
                    holder = Holder.of(self._path)
                    if holder is not None and holder.token == self._token:
                        self._path.unlink()
                finally:
                    self._guard.unlink(missing_ok=True)
        self._remove_made()

    def check(self) -> None:
        """Check that the lock is still held; called before files are removed or replaced.

        Raises:
            OutputError: Another run has taken it over, or the folder is gone.
        """
        if os.getpid() != self._process:
            return
        holder = Holder.of(self._path)
        if holder is None and self._folder_is_there():  # somebody tidied up: take it again, if nobody else did
            with suppress(FileExistsError, FileNotFoundError):
                self._link()
            holder = Holder.of(self._path)
        if holder is None or holder.token != self._token:
            raise OutputError(
                f"{self._folder} was removed while this run wrote to it"
                if holder is None
                else f"{self._folder} was taken over by another run: {holder.process}",
                why="Going on, each would remove what the other writes.",
                fix="Let the other run finish, or give this one another folder.",
            )

    @property
    def _guard(self) -> Path:
        return self._path.with_name(self._path.name + _GUARD)

    def _folder_is_there(self) -> bool:
        return self._path.parent.is_dir()

    def _acquire(self) -> None:
        self._made = [path for path in (self._path.parent, *self._path.parent.parents) if not path.exists()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_TRIES):
            try:
                self._link()
            except FileExistsError:
                if self._replace_dead():
                    return
                time.sleep(_PAUSE)
            else:
                return
        raise OutputError(
            f"{self._folder} could not be locked: {self._guard.name} stays there", fix="Remove it and try again."
        )

    def _written(self) -> Path:
        own = self._path.with_name(f"{self._path.name}.{self._token}")
        with own.open("x", encoding="utf-8") as file:
            json.dump({"process": asdict(ProcessMark.of_this()), "token": self._token}, file)
            file.flush()
            os.fsync(file.fileno())
        return own

    def _link(self, path: Path | None = None) -> None:
        """Put the lock, or a file that says the same, in place in one step; FileExistsError where there is one."""
        path = path or self._path
        own = self._written()
        try:
            try:
                os.link(own, path)
            except FileExistsError:
                if own.stat().st_nlink != 2:  # NFS may have lost the answer to a link that it made
                    raise
            except OSError:  # a file system without links
                with path.open("x", encoding="utf-8") as file:
                    file.write(own.read_text("utf-8"))
        finally:
            own.unlink(missing_ok=True)

    def _guarded(self) -> bool:
        """Make the guard; False where another process has it. One of a dead process is removed first."""
        try:
            self._link(self._guard)
        except FileExistsError:
            dead = Holder.of(self._guard)
            if dead is not None and not dead.lives(time.time()):
                self._remove_guard_of(dead)
            return False
        return True

    def _remove_guard_of(self, dead: Holder) -> None:
        aside = self._path.with_name(f"{self._path.name}.{self._token}.dead")
        with suppress(FileNotFoundError, FileExistsError):
            os.rename(self._guard, aside)
            found = Holder.of(aside)
            if found is not None and found.token != dead.token:  # another process was faster, and has one of its own
                os.link(aside, self._guard)
        aside.unlink(missing_ok=True)

    def _replace_dead(self) -> bool:
        """Take the place of a lock that nobody holds any more; False where it must be looked at again.

        Raises:
            OutputError: Its holder lives.
        """
        if not self._guarded():
            return False
        try:
            own = self._written()
            try:
                holder, now = Holder.of(self._path), own.stat().st_mtime
                if holder is None:
                    return False
                if not self._take_over and holder.lives(now):
                    raise held(self._folder, holder, now)
                os.replace(own, self._path)
            finally:
                own.unlink(missing_ok=True)
        finally:
            self._guard.unlink(missing_ok=True)
        return True

    def _renew(self) -> None:
        while not self._stop.wait(RENEWED_EVERY):
            holder = Holder.of(self._path)
            if holder is not None and holder.token == self._token:
                with suppress(OSError):
                    os.utime(self._path)

    def _remove_made(self) -> None:
        for path in self._made:
            with suppress(OSError):
                path.rmdir()


_held: dict[str, FolderLock] = {}
"""The locks of this process, by folder."""


def _key(folder: Path) -> str:
    return os.path.realpath(folder)


def lock_around(folder: str | os.PathLike[str]) -> FolderLock | None:
    """Return this process's lock on a folder, or on one that it lies in; None where it holds none."""
    path = Path(_key(Path(folder)))
    return next((_held[str(place)] for place in (path, *path.parents) if str(place) in _held), None)


def check_still_held(folder: str | os.PathLike[str]) -> None:
    """Check this process's lock around a folder, where there is one, before something in it is removed.

    Raises:
        OutputError: Another run has taken it over, or the folder is gone.
    """
    lock = lock_around(folder)
    if lock is not None:
        lock.check()


def refuse_held(folder: Path) -> None:
    """Refuse a folder that another run holds; writes nothing.

    Raises:
        OutputError: Names the holder.
    """
    holder, now = Holder.of(folder / LOCK), time.time()
    if holder is not None and holder.lives(now) and lock_around(folder) is None:
        raise held(folder, holder, now)


def held(folder: Path, holder: Holder, now: float) -> OutputError:
    """Return the error that names the run which holds a folder."""
    return OutputError(
        f"{folder} is in use by another run: {holder.process}, last heard of {max(0, int(now - holder.renewed))} s ago",
        why="Two runs in one folder remove each other's results.",
        fix="Wait for it or end it, or give another folder. Where it is dead for certain, --take-over takes the folder "
        "from it; one that cannot be seen from this machine counts as dead after two minutes.",
    )
