"""Monitoring of a device: drift detection, capture of images, and events in SQLite."""
