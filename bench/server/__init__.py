"""Measurements of the server: throughput, overload, liveness and graceful shutdown."""
