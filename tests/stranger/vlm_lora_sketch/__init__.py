"""The Sketch family: a Llama that sees small images as four patches."""
