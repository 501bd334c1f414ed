"""Answers of a trained model, and what metrics make of them."""
