"""Commands that carry a run over to new images."""
