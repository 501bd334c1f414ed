"""Saving and loading what was trained: PEFT's adapter files, one safetensors file beside them, the manifest."""

from vlm_lora_plugin.checkpoint.load import restore
from vlm_lora_plugin.checkpoint.save import save_adapter

__all__ = ["restore", "save_adapter"]
