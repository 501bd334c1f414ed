"""The prepared model, and the core of ``prepare``; no framework is known here."""
