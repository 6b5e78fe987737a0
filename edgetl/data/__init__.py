"""Image folders and label tables: scan, layout, groups, split, loading. No torch."""
