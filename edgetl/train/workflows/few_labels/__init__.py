"""Training with few labeled images."""
