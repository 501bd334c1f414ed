"""From rows of data files to encoded examples and batches."""
