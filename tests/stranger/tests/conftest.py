pytest_plugins = ["vlm_lora_plugin.testing.plugin"]
