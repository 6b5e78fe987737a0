"""Data audit: duplicates, leakage between splits, label conflicts, image quality and groups. No torch."""
