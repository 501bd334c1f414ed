"""Calling what somebody else wrote: nothing that it raises ends this process, but the user's own Ctrl-C does."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from vlm_lora_plugin.outside.display import shown

T = TypeVar("T")

SECONDS = 20.0
SECONDS_VARIABLE = "VLM_LORA_PLUGIN_SECONDS"
"""Sets another number of seconds that a third party's plugin may take to be imported."""


class PluginExit(Exception):
    """A plugin raised what ends a process: ``SystemExit``, ``KeyboardInterrupt`` and whatever else is no Exception."""


class _NoEnd(BaseException):
    """An import has taken too long; no Exception, so that the plugin's own code does not swallow it."""


def guarded(call: Callable[[], T]) -> T:
    """Call a plugin's function.

    Raises:
        PluginExit: It raised a BaseException that is no Exception.
        Exception: It raised that.
        KeyboardInterrupt: The user pressed Ctrl-C meanwhile.
    """
    with _noticing_interrupts() as interrupted:
        try:
            return call()
        except (Exception, _NoEnd):
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and interrupted():
                raise
            raise PluginExit(told(error)) from error


def told(error: BaseException) -> str:
    """Return an error as a message names it, whatever its own ``__str__`` does: ``KeyError: 'vision'``."""
    if isinstance(error, PluginExit):
        return str(error)
    try:
        text = str(error)
    except BaseException:
        text = "(it cannot be printed)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def represented(value: object) -> str:
    """Return a value as a message shows it, whatever its own ``__repr__`` does."""
    try:
        return shown(repr(value))
    except BaseException:
        return f"a {type(value).__name__}"


def within_time(call: Callable[[], T], who: str, *, limited: bool) -> T:
    """Import a plugin; one that does not come to an end is named, and given up where that can be done.

    Python code in the main thread is interrupted by a timer. Where there is none (another thread, Windows), or where
    the plugin hangs in foreign code, a line on standard error says who it is.

    Args:
        call: Imports it.
        who: The plugin and its distribution, the beginning of a sentence.
        limited: Whether it may be given up; a plugin of this package's own is only named.

    Raises:
        PluginExit: It took too long.
    """
    seconds = _seconds()
    watch = threading.Timer(seconds + (2 if limited else 0), _name_it, (who, seconds))
    watch.daemon = True
    watch.start()
    try:
        with _alarm(seconds if limited else 0):
            return call()
    except _NoEnd:
        raise PluginExit(
            f"importing it did not end within {seconds:g} s ({SECONDS_VARIABLE} sets another number)"
        ) from None
    finally:
        watch.cancel()


def _seconds() -> float:
    try:
        return max(float(os.environ.get(SECONDS_VARIABLE, SECONDS)), 0.1)
    except ValueError:
        return SECONDS


def _name_it(who: str, seconds: float) -> None:
    sys.stderr.write(f"{who} is still being imported after {seconds:g} s\n")
    sys.stderr.flush()


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise :class:`_NoEnd` in the main thread after some seconds, and again each second; 0 for never."""
    usable = (
        seconds
        and hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    )
    if not usable:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise _NoEnd

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


@contextmanager
def _noticing_interrupts() -> Iterator[Callable[[], bool]]:
    """Give what tells whether the user has pressed Ctrl-C since, as opposed to somebody raising the same error."""
    main = threading.current_thread() is threading.main_thread()
    if not main:  # where Python delivers no signal
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):  # ignored, left to the system, or handled in C: nothing that Python raises
        yield lambda: False
        return
    pressed = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        before(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield lambda: pressed
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)
