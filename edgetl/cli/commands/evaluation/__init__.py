"""Commands that evaluate models on labeled images."""
