"""``python -m vlm_lora_plugin.cli`` is the command ``vlm-lora``."""

from vlm_lora_plugin.cli import main

if __name__ == "__main__":
    main()
