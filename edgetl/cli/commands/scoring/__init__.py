"""Commands that predict images."""
