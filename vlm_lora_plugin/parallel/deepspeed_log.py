"""DeepSpeed's log, in its place: libraries import DeepSpeed wherever it is installed, also in runs that do not use it.

On import it writes to standard output which accelerator it found, or that it found none: into reports, and into JSON.
"""

from __future__ import annotations

import logging
import os
import sys
from types import ModuleType

LOGGER = "DeepSpeed"
"""Name of DeepSpeed's logger, whose handler writes to the standard output of its import."""

_ACCELERATOR = "real_accelerator"
"""The module of DeepSpeed's that looks for an accelerator."""

_SWITCH = "ACCELERATE_USE_DEEPSPEED"
"""Accelerate's variable, which `accelerate launch` sets."""


def quieten_deepspeed() -> None:
    """Send what DeepSpeed logs to standard error, and leave its search for an accelerator out where it is not used.

    Imports neither DeepSpeed nor torch; a second call changes nothing.
    """
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(each, _InItsPlace) for each in logger.filters):
        logger.addFilter(_InItsPlace())


class _InItsPlace(logging.Filter):
    """Lives as long as the logger; DeepSpeed's own set-up of level and handlers leaves filters alone."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is written, and move the handlers of its logger to standard error."""
        for handler in logging.getLogger(LOGGER).handlers:
            if type(handler) is logging.StreamHandler:  # DeepSpeed's own, on what was standard output then
                handler.setStream(sys.stderr)
        return record.module != _ACCELERATOR or uses_deepspeed()


def uses_deepspeed() -> bool:
    """Return whether this process trains, or is about to train, with DeepSpeed."""
    if os.environ.get(_SWITCH, "false").lower() in ("1", "true", "yes"):
        return True
    transformers: ModuleType | None = sys.modules.get("transformers.integrations.deepspeed")
    return transformers is not None and transformers.deepspeed_config() is not None
