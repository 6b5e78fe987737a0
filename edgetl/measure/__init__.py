"""Latency measurement: scenarios, percentiles, cold start."""
