"""Image folders: scan, labels, split, loading. No torch."""
