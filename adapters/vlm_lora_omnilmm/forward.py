"""What makes OmniLMM's forward pass leaner with the same result: nothing beside the core's patches.

That the images of a batch go through the tower together, and a frozen tower leaves no graph, the plain forward sees to.
"""

from __future__ import annotations

from vlm_lora_omnilmm.modeling import OmniLMMForCausalLM
from vlm_lora_plugin.patches import no_patches

patches = no_patches(OmniLMMForCausalLM)
