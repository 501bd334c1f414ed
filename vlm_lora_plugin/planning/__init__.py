"""A recipe on its hardware: resolved values, predicted memory, tiers, DeepSpeed settings."""
