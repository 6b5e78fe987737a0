"""Heads that are fitted on features on disk."""
