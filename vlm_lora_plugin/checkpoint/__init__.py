"""Saving and loading what was trained: PEFT's adapter files, one safetensors file beside them, the manifest."""

from vlm_lora_plugin.checkpoint.load import load_adapter, restore
from vlm_lora_plugin.checkpoint.save import save_adapter

__all__ = ["load_adapter", "restore", "save_adapter"]
