"""What Swift is told when it imports the plugin file."""

from __future__ import annotations

from vlm_lora_plugin.frameworks.swift.versions import check_version


def register() -> None:
    """Tell Swift of every family; a second call changes nothing.

    Raises:
        SwiftError: ms-swift is missing, or of a version that is not supported.
    """
    check_version()
