"""Patches of the forward pass that families share."""
