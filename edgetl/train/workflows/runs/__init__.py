"""Workflows on a finished run: evaluation, calibration, pruning."""
