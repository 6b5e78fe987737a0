"""Benchmarks that print every figure of the README and the documentation, with the host of the measurement."""
