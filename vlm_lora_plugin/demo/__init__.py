"""The demo: a tiny model learns to read handwritten digits on the path that every user takes."""

from __future__ import annotations

from pathlib import Path


def run_demo(output: Path, family_name: str | None = None) -> None:
    """Train, evaluate and reload; see :func:`vlm_lora_plugin.demo.demo_job.run`."""
    from vlm_lora_plugin.demo.demo_job import run

    run(output, family_name=family_name)
