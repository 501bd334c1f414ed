"""Write docs/reference/memory-validation.md: what a trace predicts beside what was measured.

    python tools/memory_validation.py [--gpu memory.json]

The settings for the CPU are those of the test suite. ``--gpu`` takes what tools/memory_on_a_gpu.py has written; without
it the predictions for full-size models stand alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference/memory-validation.md"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/unit/memory")]

HEAD = """<!-- Written by tools/memory_validation.py; change that file instead. -->

# Memory: predicted and measured

`vlm-lora plan` traces a step without values, see [does it fit?](../how-to/does-it-fit.md). This is how far it is off.

## On the CPU, small models

Each line is one step of a small model of random weights, traced for the CPU and taken for real under PyTorch's
profiler, with AdamW. *All* counts everything that is alive at the peak; *moving* leaves out weights, buffers and the
optimizer's states, which are alive all the time. The names say model, preset, which blocks are checkpointed (v vision,
l language), dtype, rows x tokens, images a row, and tokens with a label.

"""

COLUMNS = "model | preset | rows x tokens | labels | crops | checkpointed | predicted | allocated | reserved | error"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", type=Path, help="What tools/memory_on_a_gpu.py has written.")
    options = parser.parse_args()
    lines = [*_on_cpu(), *_full_size(options.gpu)]
    PAGE.write_text(HEAD + "\n".join(lines) + "\n", "utf-8")


def _on_cpu() -> list[str]:
    from measuring import measured, traced  # type: ignore[import-not-found]
    from test_against_the_profiler import MANY  # type: ignore[import-not-found]

    table, whole, moving = [], [], []
    for setting in MANY:
        step, batch = traced(setting)
        real = measured(setting, batch)
        whole.append(step.peak.bytes / real - 1)
        moving.append(step.moving / (real - step.static) - 1)
        table.append(f"| `{setting}` | {real / 2**20:.2f} | {whole[-1]:+.3%} | {moving[-1]:+.3%} |")
    when, where = time.strftime("%-d %B %Y"), f"{platform.machine()}, torch {torch.__version__}"
    return [
        f"{len(table)} settings, {when}, {where}: all {_errors(whole)}; moving {_errors(moving)}.",
        "",
        "| step | measured, MiB | all | moving |",
        "|---|---|---|---|",
        *table,
        "",
    ]


def _errors(values: list[float]) -> str:
    sizes = [abs(value) for value in values]
    return f"{statistics.mean(sizes):.3%} off on average, {max(sizes):.3%} at worst"


def _full_size(file: Path | None) -> list[str]:
    found: dict[str, Any] = {} if file is None else json.loads(file.read_text("utf-8"))
    settings = found.get("settings", [])
    measured = any("allocated_gib" in setting for setting in settings)
    lines = ["## On a GPU, full size", ""]
    if not measured:
        lines += [
            "Not measured yet: no GPU was at hand. One command does it in a few minutes, and needs no download:",
            "",
            "```bash",
            "python tools/memory_on_a_gpu.py --output memory.json",
            "python tools/memory_validation.py --gpu memory.json",
            "```",
        ]
    if settings:
        lines += [
            "",
            "GiB at the peak of one step in bf16 with gradients and AdamW's states present, the reserve left out.",
            "",
            f"| {COLUMNS} |",
            "|---" * len(COLUMNS.split("|")) + "|",
            *(_line(setting) for setting in settings),
        ]
    return lines


def _line(setting: dict[str, Any]) -> str:
    allocated, reserved, error = (setting.get(key) for key in ("allocated_gib", "reserved_gib", "error"))
    shown = [
        setting["model"],
        f"`{setting['preset']}`",
        f"{setting['rows']} x {setting['tokens']:,}",
        setting["answers"],
        setting["crops"] or "",
        "yes" if setting["checkpointed"] else "no",
        f"{setting['predicted_gib']:.2f}",
        "" if allocated is None else f"{allocated:.2f}",
        "" if reserved is None else f"{reserved:.2f}",
        "" if error is None else f"{error:+.2%}",
    ]
    return f"| {' | '.join(map(str, shown))} |"


if __name__ == "__main__":
    main()
