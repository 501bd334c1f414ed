"""What makes Monkey's forward pass leaner with the same result: nothing beside the core's patches."""

from __future__ import annotations

from vlm_lora_monkey.modeling import MonkeyForCausalLM
from vlm_lora_plugin.patches import no_patches

patches = no_patches(MonkeyForCausalLM)
