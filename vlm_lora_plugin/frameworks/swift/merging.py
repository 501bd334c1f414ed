"""``swift export --merge_lora``, ``swift infer --merge_lora`` and ``swift merge-lora``: the merge of this package.

Swift's own folds PEFT's LoRA alone and leaves out everything else that was trained.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm_lora_plugin.errors import CheckpointError
from vlm_lora_plugin.frameworks.swift.names import TUNER
from vlm_lora_plugin.merging.merge import merge_adapter
from vlm_lora_plugin.outside.files import reason
from vlm_lora_plugin.outside.json_text import read_json

ARGUMENTS = "args.json"
"""Swift's record of a run. In a merged folder it tells Swift which plugin file the folder needs."""

_logger = logging.getLogger(__name__)


def merging_everything(original: Callable[..., None]) -> Callable[..., None]:
    """Return what merges all that was trained, for our tuner."""

    def merge_lora(args: Any, device_map: Any = None, replace_if_exists: bool = False) -> None:
        if args.tuner_type != TUNER:
            original(args, device_map=device_map, replace_if_exists=replace_if_exists)
            return
        if len(args.adapters) != 1:
            raise CheckpointError(
                f"{len(args.adapters)} adapters cannot be merged into one model", fix="Give one: --adapters CHECKPOINT."
            )
        adapter = Path(args.adapters[0])
        output = Path(getattr(args, "output_dir", None) or f"{adapter}-merged")
        if replace_if_exists and output.exists():
            shutil.rmtree(output)
        report = merge_adapter(args.model, adapter, output, args.torch_dtype)
        _keep_plugin(adapter, output)
        _logger.info("merged %d tensors into %s", report.tensors, output)
        args.model = args.model_dir = str(output)
        args.adapters = []

    return merge_lora


def _keep_plugin(adapter: Path, output: Path) -> None:
    """Write what Swift must know to load the merged folder; nothing of it trains."""
    source = adapter / ARGUMENTS
    if source.is_file():
        kept = ("swift_version", "external_plugins", "tuner_type", "model_type", "template", "task_type", "torch_dtype")
        try:
            document = read_json(source)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{source} cannot be read: {reason(error)}", fix="Use an unchanged copy of the checkpoint."
            ) from None
        record = {key: document[key] for key in kept if key in document}
        (output / ARGUMENTS).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
