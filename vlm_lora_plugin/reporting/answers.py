"""Sampled answers as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lora_plugin.outside.display import shown

if TYPE_CHECKING:
    from vlm_lora_plugin.answering.samples import Sample


def answer_lines(sample: Sample) -> list[str]:
    """Return a sample as lines; text of rows and of the model is cut, and shown without what a terminal obeys."""
    many = f"{len(sample.answers)} of the {sample.rows:,} rows of the {sample.data} data"
    if not sample.answers:
        return [f"no sampled answers: {sample.why_fewer}"] if sample.why_fewer else []
    lines = [f"answers to {many}" + (f" ({sample.why_fewer})" if sample.why_fewer else "") + ":"]
    for each in sample.answers:
        lines.append(f"  {shown(each.origin)}  {shown(each.question)}")
        lines += [f"    known   {shown(each.known)}", f"    answer  {shown(each.answer) or '(nothing)'}"]
    return lines
