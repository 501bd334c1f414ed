"""From a conversation to tensors: the base class of processors, and all of ``data`` that a family's package needs.

What needs torch is imported when it is first used, so that reading rows stays light.
"""

from typing import TYPE_CHECKING

from vlm_lora_plugin.data.encoding.conversations import (
    check_alternating,
    check_ends_with_answer,
    check_image_marks,
    check_reserved,
)
from vlm_lora_plugin.data.image_sources import resolve_image_path
from vlm_lora_plugin.data.images import image_size, open_image
from vlm_lora_plugin.data.reading import turns_of
from vlm_lora_plugin.lazy import lazy_names

if TYPE_CHECKING:
    from vlm_lora_plugin.data.collation import IGNORE_INDEX, collate_rows, pad_rows
    from vlm_lora_plugin.data.encoding.chat_template import ChatTemplateProcessor
    from vlm_lora_plugin.data.encoding.encoded import Encoded
    from vlm_lora_plugin.data.encoding.processor import EncodingProcessor
    from vlm_lora_plugin.data.pixels import CLIP_MEAN, CLIP_STD, load_pixels, normalised, read_rgb

_WITH_TORCH = {
    "vlm_lora_plugin.data.collation": ("IGNORE_INDEX", "collate_rows", "pad_rows"),
    "vlm_lora_plugin.data.encoding.chat_template": ("ChatTemplateProcessor",),
    "vlm_lora_plugin.data.encoding.encoded": ("Encoded",),
    "vlm_lora_plugin.data.encoding.processor": ("EncodingProcessor",),
    "vlm_lora_plugin.data.pixels": ("CLIP_MEAN", "CLIP_STD", "load_pixels", "normalised", "read_rgb"),
}

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "IGNORE_INDEX",
    "ChatTemplateProcessor",
    "Encoded",
    "EncodingProcessor",
    "check_alternating",
    "check_ends_with_answer",
    "check_image_marks",
    "check_reserved",
    "collate_rows",
    "image_size",
    "load_pixels",
    "normalised",
    "open_image",
    "pad_rows",
    "read_rgb",
    "resolve_image_path",
    "turns_of",
]

if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, _WITH_TORCH)
