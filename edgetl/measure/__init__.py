"""Latency scenarios, host fingerprint, reports."""
