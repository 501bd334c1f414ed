"""``vlm-lora swift``: Swift's own command line with the plugin loaded."""

from __future__ import annotations

from typing import Annotated

import typer

ANY_OPTION = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "allow_interspersed_args": False,
    "help_option_names": [],
}
"""Context settings: every option is Swift's, ``--help`` included."""


def swift(
    context: typer.Context,
    command: Annotated[
        str, typer.Argument(metavar="COMMAND", help="Swift's command: sft, infer, export, deploy...")
    ] = "",
) -> None:
    """Run `swift COMMAND ...` of ms-swift with this plugin loaded; every option is Swift's."""
    from vlm_lora_plugin.frameworks.swift.launch import become_swift

    if command in ("", "--help", "-h"):
        typer.echo(USAGE)
        raise typer.Exit(0 if command else 2)
    raise typer.Exit(become_swift(command, context.args))


USAGE = """\
Usage: vlm-lora swift COMMAND [ARGUMENTS]...

  Runs `swift COMMAND ARGUMENTS` of ms-swift with this plugin loaded. Plugins of
  your own (--external_plugins) and a YAML or JSON file as the first argument
  work as they do in Swift.

  vlm-lora swift sft --model FOLDER --dataset train.jsonl $(vlm-lora swift-args lora)
  vlm-lora swift infer --adapters output/checkpoint-100
  vlm-lora swift export --adapters output/checkpoint-100 --merge_lora true
  vlm-lora swift sft --help"""
