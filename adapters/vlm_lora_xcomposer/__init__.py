"""InternLM-XComposer 2, 2-4KHD and 2.5 for vlm_lora_plugin."""
