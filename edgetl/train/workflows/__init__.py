"""Workflows: one module per user-facing function, such as train, compare, estimate, evaluate, preview, prune and rank."""
