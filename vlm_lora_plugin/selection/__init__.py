"""From rules to exact names, LoRA and its initialisation."""
