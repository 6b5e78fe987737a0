"""Anomaly detection: layout of folders with normal images, their splits, and synthetic defects."""
