"""``vlm-lora merge``: one plain checkpoint out of a base model and an adapter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vlm_lora_plugin.cli.options import DtypeOption, TakeOverOption, TracebackOption, name_of


def merge(
    base: Annotated[Path, typer.Argument(help="The base model's folder.")],
    adapter: Annotated[Path, typer.Argument(help="What was trained: an adapter or checkpoint folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new folder; must not exist.")],
    dtype: DtypeOption = None,
    take_over: TakeOverOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Write a plain full checkpoint with everything that was trained in it, reload it and compare its logits."""
    from vlm_lora_plugin.checkpoint.space import check_names
    from vlm_lora_plugin.errors import CheckpointError, ModelError, OutputError
    from vlm_lora_plugin.plugins.manager import get_manager

    check_names(output)
    if os.path.lexists(output):
        raise OutputError(f"{output} exists already", fix="Give a folder that does not, or remove it first.")
    if not base.is_dir():
        raise ModelError(f"There is no model folder {base}")
    if not adapter.is_dir():
        raise CheckpointError(f"There is no adapter folder {adapter}")
    get_manager().family_of_folder(base)
    from vlm_lora_plugin.merging.merge import merge_adapter  # imports torch: after what can be refused without it
    from vlm_lora_plugin.planning.dtypes import DTYPES
    from vlm_lora_plugin.reporting.console import make_console

    name = name_of(dtype)
    report = merge_adapter(base, adapter, output, DTYPES[name] if name else None, take_over=take_over)
    console = make_console()
    console.print(
        f"{report.tensors} tensors in {str(report.dtype).removeprefix('torch.')}, {report.size / 2**30:.2f} GiB; "
        f"LoRA folded into {report.folded} layers",
        highlight=False,
    )
    console.print(
        f"reloaded: logits differ from the adapter's model by at most {report.difference:.1e} "
        f"(relative to the largest logit: {report.error:.1e})",
        highlight=False,
    )
    console.print(f"merged  {report.folder}", highlight=False, soft_wrap=True, markup=False)
