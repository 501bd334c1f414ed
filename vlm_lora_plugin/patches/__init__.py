"""Reversible changes of the forward pass, one file each."""
