"""The command line, ``vlm-lora``: one file a command, and nothing heavy imported before a command runs."""

from __future__ import annotations


def main() -> None:
    """Run ``vlm-lora`` with the process's arguments."""
    from vlm_lora_plugin.cli.app import app

    app()
