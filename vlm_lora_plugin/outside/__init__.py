"""What comes from outside is not trusted: how files are opened, documents parsed, and text of others shown."""
