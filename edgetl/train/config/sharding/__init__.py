"""Sharded training: its options."""
