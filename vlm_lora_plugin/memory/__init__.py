"""The memory of one training step, found by running it on tensors without values."""
