"""Measurements for devices: drift detection, tuning, footprint, and the endurance of the runner."""
