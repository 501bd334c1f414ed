"""Names under which this package appears in Swift."""

from __future__ import annotations

TUNER = "vlm_lora"
"""Value of ``--tuner_type``."""

RECIPE_VARIABLE = "VLM_LORA_RECIPE"
"""Environment variable that ``--model_kwargs '{"vlm_lora_recipe": ...}'`` becomes."""
