"""Where the file is that ``swift --external_plugins`` takes."""

from __future__ import annotations

from pathlib import Path

PLUGIN_FILE_NAME = "vlm_lora_swift_plugin.py"


def plugin_file() -> Path:
    """Return the absolute path of the plugin file; imports neither torch nor Swift."""
    return Path(__file__).resolve().parent / "plugin_file" / PLUGIN_FILE_NAME
