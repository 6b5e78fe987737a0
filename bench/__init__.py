"""Measurements: every figure of the README is printed by something here, with the machine it came from."""
