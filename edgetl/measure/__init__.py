"""Latency scenarios and cold start."""
