"""The command line, ``vlm-lora``: one file a command, and nothing heavy imported before a command runs."""

from __future__ import annotations

import sys

from vlm_lora_plugin.outside.display import never_crash
from vlm_lora_plugin.parallel.children import become_safe


def main() -> None:
    """Run ``vlm-lora`` with the process's arguments."""
    become_safe()
    never_crash()
    match sys.argv[1:]:
        case ["swift", command, *arguments] if not command.startswith("-"):
            sys.exit(_swift(command, arguments))
    from vlm_lora_plugin.cli.app import app

    app()


def _swift(command: str, arguments: list[str]) -> int:
    """Run a command of Swift's without the parser of ours, whose import takes longer than all the rest."""
    from vlm_lora_plugin.errors import VlmLoraError
    from vlm_lora_plugin.frameworks.swift.launch import become_swift

    try:
        return become_swift(command, arguments)
    except VlmLoraError as error:
        from vlm_lora_plugin.cli.failure import exit_code, show

        show(error)
        return exit_code(error)
