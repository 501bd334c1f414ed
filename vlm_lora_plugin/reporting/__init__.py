"""What a run shows and leaves: tables, trees, the log, the picture of the loss."""
