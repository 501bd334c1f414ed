"""Monkey's special tokens, in the order of their ids (upstream's ``monkey_model/tokenization_qwen.py``)."""

from __future__ import annotations

END_OF_TEXT = "<|endoftext|>"
IMAGE_START, IMAGE_END, IMAGE_PAD = "<img>", "</img>", "<imgpad>"
GROUNDING_TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{number}|>" for number in range(205)),
    *GROUNDING_TAGS,
    IMAGE_START,
    IMAGE_END,
    IMAGE_PAD,
)
