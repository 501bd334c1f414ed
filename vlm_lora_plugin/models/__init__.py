"""What the families' model code shares: loss, reading of checkpoints, registration with transformers."""
