"""The same job in the Trainer and in ms-swift, compared to the last bit: what ``vlm-lora parity`` runs."""
