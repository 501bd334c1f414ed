"""The Hugging Face Trainer, unmodified: arguments from a recipe, a callback that checks the run, and its hooks."""

from vlm_lora_plugin.frameworks.trainer.arguments import argument_values, training_arguments, unchecked_arguments
from vlm_lora_plugin.frameworks.trainer.callback import VlmLoraCallback

__all__ = ["VlmLoraCallback", "argument_values", "training_arguments", "unchecked_arguments"]
