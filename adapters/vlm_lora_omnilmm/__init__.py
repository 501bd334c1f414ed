"""OmniLMM-12B for vlm_lora_plugin."""
