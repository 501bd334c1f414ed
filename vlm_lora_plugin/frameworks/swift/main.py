"""``python -m vlm_lora_plugin.frameworks.swift.main``: what the command ``swift`` runs, with children on a safe path.

Swift starts torchrun with ``python -m``. Where Python does not know ``PYTHONSAFEPATH`` that line is rewritten, in this
process, which only starts others. It ends when the process that started it dies.
"""

from __future__ import annotations

import runpy
import subprocess
from typing import Any

from vlm_lora_plugin.parallel.children import safe_line
from vlm_lora_plugin.parallel.parent_death import die_with_launchers

MAIN = "vlm_lora_plugin.frameworks.swift.main"
"""The module to run in place of Swift's."""

_SWIFT = "swift.cli.main"


def run_main() -> None:
    """Run Swift's command line with this process's arguments."""
    original = subprocess.run

    def run(line: list[str], *args: Any, **kwargs: Any) -> subprocess.CompletedProcess[Any]:
        return original(safe_line(line), *args, **kwargs)

    subprocess.run = run  # type: ignore[assignment]
    try:
        runpy.run_module(_SWIFT, run_name="__main__", alter_sys=True)
    finally:
        subprocess.run = original


if __name__ == "__main__":
    die_with_launchers()
    run_main()
