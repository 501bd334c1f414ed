"""How a refusal reaches the user of Swift's own command line, and what Swift says of our families without our tuner."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.errors import SwiftError, VlmLoraError
from vlm_lora_plugin.frameworks.swift.names import TUNER
from vlm_lora_plugin.frameworks.swift.recognition import family_of, own_type
from vlm_lora_plugin.reporting.failure import TRACEBACK_VARIABLE, exit_code, show

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Family

_MANIFEST = "vlm_lora_manifest.json"
_ADD = (
    f"Add $(vlm-lora swift-args lora), or another preset or recipe in its place; that is --tuner_type {TUNER} and what "
    "goes with it. docs/how-to/train-with-swift.md has the whole command."
)


def refuse_in_one_message() -> None:
    """Show our own errors that end a process of Swift's command line as elsewhere: no traceback, exit code 2 or 3.

    In another program, and with ``VLM_LORA_TRACEBACK`` set, Python's own report stays. A second call changes nothing.
    """
    if _is_swifts_command() and not isinstance(sys.excepthook, _OneMessage):
        sys.excepthook = _OneMessage(sys.excepthook)


class _OneMessage:
    """Stands in for ``sys.excepthook``."""

    def __init__(self, before: Callable[..., object]) -> None:
        self._before = before

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, VlmLoraError) or os.environ.get(TRACEBACK_VARIABLE):
            self._before(kind, error, trace)
            return
        rank = os.environ.get("LOCAL_RANK", "0")
        if rank == "0":
            show(error)
        else:  # of what all ranks refuse, the first one says the rest
            sys.stderr.write(f"rank {rank}: {type(error).__name__}: {error.what}\n")
        sys.stdout.flush()
        sys.stderr.flush()
        raise SystemExit(exit_code(error))


def _is_swifts_command() -> bool:
    """Return whether this process is one that Swift's command line started."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return file is not None and Path(file).parts[-3:-1] == ("swift", "cli")


def without_our_tuner(original: Callable[[Any], None], arguments: Any, *, trains: bool) -> None:
    """Let Swift look at the model; where it is our families' and Swift cannot go on, say what to add.

    Args:
        original: Swift's own look at the model.
        arguments: Swift's.
        trains: Whether the command trains.

    Raises:
        SwiftError: The command would train a model of our families in Swift's own way, or load an adapter of ours in
            part; or Swift has failed over a folder that a family of ours recognises.
    """
    folder = Path(str(getattr(arguments, "model", None) or "")).expanduser()
    if trains and folder.is_dir() and (own := own_type(folder, getattr(arguments, "model_type", None))) is not None:
        raise SwiftError(
            f"--tuner_type {getattr(arguments, 'tuner_type', None)} does not train a model of the family {own}",
            why="Swift's own tuners leave out what this family learns with, and its loss is another.",
            fix=_ADD,
        )
    adapters = getattr(arguments, "adapters", None) or ()
    ours = next((path for path in adapters if (Path(str(path)).expanduser() / _MANIFEST).is_file()), None)
    if ours is not None:
        raise SwiftError(
            f"{ours} was trained by vlm-lora-plugin, and --tuner_type is {getattr(arguments, 'tuner_type', None)}",
            why="Swift would load PEFT's LoRA alone, and leave out all else that was trained.",
            fix=f"Add --tuner_type {TUNER}.",
        )
    family = family_of(folder) if folder.is_dir() else None
    try:
        original(arguments)
    except VlmLoraError:
        raise
    except Exception as error:  # whatever Swift and transformers raise over a folder that they do not know
        if family is None:
            raise
        raise _unknown_to_swift(folder, family, error, trains=trains) from error


def _unknown_to_swift(folder: Path, family: Family, error: Exception, *, trains: bool) -> SwiftError:
    said = (str(error).splitlines() or [""])[0]
    return SwiftError(
        f"Swift itself cannot read {folder}: {type(error).__name__}: {said}",
        why=f"It is a model of the family {family.name}, which this package trains; no other transformers helps.",
        fix=_ADD if trains else f"Add --model_type {family.name}.",
    )
