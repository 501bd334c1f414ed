"""An adapter folded into its base: one plain checkpoint."""
