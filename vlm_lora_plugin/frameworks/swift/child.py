"""What :func:`~vlm_lora_plugin.frameworks.swift.launch.run_swift` starts: the command ``swift``, until we die."""

from __future__ import annotations

import runpy

from vlm_lora_plugin.parallel.parent_death import die_with_launchers

if __name__ == "__main__":
    die_with_launchers()
    runpy.run_module("swift.cli.main", run_name="__main__", alter_sys=True)
