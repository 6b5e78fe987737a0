"""Data audit with frozen features: near-duplicates and label errors."""
