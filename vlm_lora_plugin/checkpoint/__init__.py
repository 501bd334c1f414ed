"""Saving and loading what was trained: PEFT's adapter files, one safetensors file beside them, the manifest."""
