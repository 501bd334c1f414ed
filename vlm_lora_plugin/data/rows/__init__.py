"""What the keys of a row mean: which are followed, which change nothing, and which make it a bad row."""
