"""The typer application: global options, commands, and what becomes of an error."""

from __future__ import annotations

from traceback import print_exception

import typer
from typer.core import TyperGroup

from vlm_lora_plugin._version import __version__
from vlm_lora_plugin.cli.adapters import adapters
from vlm_lora_plugin.cli.data_check import data_check
from vlm_lora_plugin.cli.deepspeed import deepspeed
from vlm_lora_plugin.cli.failure import ended_by, exit_code, show, wants_traceback
from vlm_lora_plugin.cli.inspect import inspect
from vlm_lora_plugin.cli.merge import merge
from vlm_lora_plugin.cli.options import COMMAND_LINE, TracebackOption
from vlm_lora_plugin.cli.parity import parity
from vlm_lora_plugin.cli.plan import plan
from vlm_lora_plugin.cli.presets import presets
from vlm_lora_plugin.cli.swift import ANY_OPTION, swift
from vlm_lora_plugin.cli.swift_args import swift_args
from vlm_lora_plugin.cli.train import train
from vlm_lora_plugin.errors import VlmLoraError


class _Commands(TyperGroup):
    """Shows our own errors without a traceback; any other error is a fault of ours and keeps its own."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        ctx.meta[COMMAND_LINE] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # typer re-exports click's Context
        from vlm_lora_plugin.parallel.deepspeed_log import quieten_deepspeed
        from vlm_lora_plugin.parallel.parent_death import die_with_launchers

        quieten_deepspeed()
        die_with_launchers()
        try:
            return super().invoke(ctx)
        except VlmLoraError as error:
            if wants_traceback(ctx):
                print_exception(error)
            show(error)
            raise typer.Exit(exit_code(error)) from None
        except SystemExit as end:  # ours are typer.Exit: a plugin, a metric or a library has ended the process
            print_exception(end)
            show(ended_by(end))
            raise typer.Exit(1) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vlm-lora {__version__}")
        raise typer.Exit


# Plain help text: rich's would more than double the time of `--help`.
app = typer.Typer(
    name="vlm-lora",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def vlm_lora(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
    traceback: TracebackOption = False,
) -> None:
    """LoRA fine-tuning of vision-language models.

    Exit codes: 0 done; 1 a fault of this program (with its traceback), `parity` found a difference, or `plan` no
    room; 2 input that cannot be used; 3 training stopped because it did not do what the recipe says.
    """


for command in (inspect, plan, data_check, train, merge, deepspeed, parity, swift_args, adapters, presets):
    app.command()(command)
app.command(context_settings=ANY_OPTION)(swift)
