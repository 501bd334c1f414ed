"""Names under which this package appears in Swift."""

from __future__ import annotations

TUNER = "vlm_lora"
"""Value of ``--tuner_type``."""

JOB_CALLBACK = "vlm_lora_job"
"""Name in Swift's table of callbacks of what writes the results of ``vlm-lora train``."""

RECORDER = "vlm_lora_parity"
"""Name in Swift's table of callbacks of what writes down a run for ``vlm-lora parity``."""

RECIPE_KEY = "vlm_lora_recipe"
"""Key of ``--model_kwargs``: Swift's parser takes no option that it does not know."""

RECIPE_VARIABLE = "VLM_LORA_RECIPE"
"""Environment variable that ``--model_kwargs '{"vlm_lora_recipe": ...}'`` becomes."""
