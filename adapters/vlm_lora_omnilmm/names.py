"""Names that rules, loaders and the prompt speak about. Nothing here imports torch."""

from __future__ import annotations

IMAGE_PATCH = "<im_patch>"
IMAGE_START = "<im_start>"
IMAGE_END = "<im_end>"
IMAGE_TOKENS = (IMAGE_PATCH, IMAGE_START, IMAGE_END)
"""In the order in which upstream adds them to the tokenizer (``chat.py``)."""

GROUNDING_TOKENS = ("<box>", "</box>", "<ref>", "</ref>", "<quad>", "</quad>")
"""What upstream adds after them (``initialize_vision_tokenizer``)."""

FIXED_TABLE_NAME = r"model\.resampler\.pos_embed"
