"""Which versions of ms-swift this package works with."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from vlm_lora_plugin._version import __version__
from vlm_lora_plugin.errors import SwiftError

DISTRIBUTION = "ms-swift"
OLDEST, TOO_NEW = (4, 5), (5,)
SUPPORTED = f">={'.'.join(map(str, OLDEST))},<{'.'.join(map(str, TOO_NEW))}"


def check_version() -> str:
    """Return the version of the installed ms-swift.

    Raises:
        SwiftError: It is missing, or outside the supported range.
    """
    try:
        installed = version(DISTRIBUTION)
    except PackageNotFoundError:
        raise SwiftError(
            f"{DISTRIBUTION} is not installed; vlm-lora-plugin {__version__} works with {DISTRIBUTION} {SUPPORTED}",
            fix="pip install 'vlm-lora-plugin[swift]'",
        ) from None
    release = tuple(map(int, re.findall(r"\d+", installed.partition("+")[0])[:3]))
    if not OLDEST <= release < TOO_NEW:
        raise SwiftError(
            f"vlm-lora-plugin {__version__} works with {DISTRIBUTION} {SUPPORTED}; {installed} is installed",
            why="Other versions call the plugin at other places, so that something else could be trained.",
            fix=f"pip install '{DISTRIBUTION}{SUPPORTED}'",
        )
    return installed
