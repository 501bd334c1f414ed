"""The Monkey family."""
