"""Output folders: checks, locks, atomic replacement, recognition of own files."""
